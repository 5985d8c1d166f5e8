"""Which rows come when: a function of seed, task and position, so that no sampler has a state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from mergekit_cl.continual.reservoir import KEY_BITS, keyed


class Passes:
    """Rows in a new random order each epoch, one epoch after the other without end.

    The order of an epoch is that of blake2b(seed, task, epoch, row id): the same wherever a run
    starts to read it, and however the rows were read from files.
    """

    def __init__(self, ids: Sequence[str], *, seed: int, task: str) -> None:
        self._ids = tuple(ids)
        self._key = (seed, "order", task)
        self._epoch = -1
        self._order: tuple[str, ...] = ()

    def take(self, first: int, count: int) -> tuple[str, ...]:
        """The ids number `first` to `first + count - 1` of the whole sequence."""
        return tuple(islice(self._from(first), count))

    def _from(self, first: int) -> Iterator[str]:
        epoch, start = divmod(first, len(self._ids))
        while True:
            yield from self._of(epoch)[start:]
            epoch, start = epoch + 1, 0

    def _of(self, epoch: int) -> tuple[str, ...]:
        if epoch != self._epoch:
            seed, *parts = self._key
            self._order = tuple(sorted(self._ids, key=lambda row: keyed(seed, *parts, epoch, row)))
            self._epoch = epoch
        return self._order


def set_aside(row_id: str, share: float) -> bool:
    """Whether a row is one of the `share` that validate.

    By its content alone, not by the seed or the task: a row that validates once does so in every
    run, so none is trained on first and judged by later.
    """
    return keyed(0, "validation", row_id) < int(share * 2**KEY_BITS)


def generator_seed(seed: int, *parts: object) -> int:
    """63 bits for torch's generators: dropout is drawn from these, anew for every batch."""
    return keyed(seed, "torch", *parts) >> (KEY_BITS - 63)
