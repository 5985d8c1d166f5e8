"""An unfinished estimate on the disk, replaced in one step at batch boundaries.

Each process keeps its own sums beside the rows that are in them, so any number of processes can
continue what any other number began.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.errors import OutputError
from mergekit_cl.output.durable import sync
from mergekit_cl.output.tensors import save_tensors

if TYPE_CHECKING:
    from fisher.accumulator import Accumulator


@dataclass(frozen=True)
class Kept:
    """What an unfinished run left: the ranks that saved a state in `place`, the rows in these."""

    place: Path
    ranks: tuple[int, ...]
    rows: frozenset[str]

    def file(self, rank: int) -> Path:
        """Where a process keeps its state."""
        return self.place / f"state-{rank:05d}.safetensors"

    def check_seen(self, rank: int) -> None:
        """Raise OutputError where a process does not see the place that another one made."""
        if not self.place.is_dir() or (rank in self.ranks and not self.file(rank).is_file()):
            raise OutputError(
                "a process does not see where the output grows",
                detail=f"{self.place}",
                hint="choose an -o on a file system that all machines share",
            )

    def to_tell(self) -> list[Any]:
        """The same as values for JSON."""
        return [str(self.place), self.ranks, sorted(self.rows)]

    @classmethod
    def told(cls, values: Sequence[Any]) -> Kept:
        """From `to_tell`."""
        place, ranks, rows = values
        return cls(Path(place), tuple(ranks), frozenset(rows))


def kept_in(place: Path) -> Kept:
    """Look what is there."""
    from safetensors import safe_open

    ranks, rows = [], set()
    for path in sorted(place.glob("state-*.safetensors")):
        with safe_open(str(path), framework="pt") as stored:
            rows.update(json.loads(stored.metadata()["numbers"])[0])
        ranks.append(int(path.stem.removeprefix("state-")))
    return Kept(place, tuple(ranks), frozenset(rows))


def save_state(path: Path, accumulator: Accumulator, rows: Collection[str]) -> None:
    """Write the accumulator, which holds `rows`; the previous state stays until it is whole.

    Raises OSError where the disk does not take it.
    """
    tensors, numbers = accumulator.state()
    fresh = path.with_suffix(".new")
    save_tensors(fresh, tensors, {"numbers": json.dumps([list(rows), numbers])})
    sync(fresh)
    fresh.replace(path)


def load_state(path: Path, accumulator: Accumulator) -> list[str]:
    """Bring the accumulator to the saved state; returns the rows in it."""
    rows, tensors, numbers = _read(path)
    accumulator.restore(tensors, numbers)
    return rows


def absorb_states(paths: Sequence[Path], accumulator: Accumulator) -> None:
    """Add what processes that are no longer there had saved; the accumulator is not saved again."""
    from fisher.distributed import combined

    for path in paths:
        _, tensors, numbers = _read(path)
        own, counts = accumulator.state()
        both = combined([counts, numbers], fixed=accumulator.settings())
        for name, tensor in own.items():
            tensor += tensors[name].to(tensor.device)
        accumulator.restore(own, both)


def _read(path: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as stored:
        rows, numbers = json.loads(stored.metadata()["numbers"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return rows, tensors, numbers
