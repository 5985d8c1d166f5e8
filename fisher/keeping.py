"""How much memory a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Keeping:
    """Bytes that graphs hold at the same time, each storage once. peak: the most so far."""

    def __init__(self) -> None:
        self.peak = 0
        self._now = 0
        self._held: dict[int, tuple[int, int]] = {}  # place -> (holders, bytes that count)
        self._elsewhere: set[int] = set()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """From now on these, and those alone, do not count: weights, which are there anyway."""
        self._elsewhere = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def take(self, place: int, nbytes: int) -> None:
        """A graph keeps a storage."""
        holders, counted = self._held.get(place, (0, 0))
        if holders == 0 and place not in self._elsewhere:
            counted = nbytes
            self._now += counted
            self.peak = max(self.peak, self._now)
        self._held[place] = (holders + 1, counted)

    def give(self, place: int) -> None:
        """It lets go of it."""
        holders, counted = self._held.pop(place)
        if holders > 1:
            self._held[place] = (holders - 1, counted)
        else:
            self._now -= counted


class _Kept:
    """A tensor in a graph; told of its end, as the graph lets go of it."""

    def __init__(self, keeping: Keeping, tensor: Tensor) -> None:
        # Whoever watches the pass must not see what is asked here.
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            self.place = storage.data_ptr()
            keeping.take(self.place, storage.nbytes())
        self.tensor, self.keeping = tensor, keeping

    def __del__(self) -> None:
        self.keeping.give(self.place)


@contextmanager
def kept_for_backward() -> Iterator[Keeping]:
    """Within, count what forward passes keep."""
    keeping = Keeping()

    def pack(tensor: Tensor) -> Any:
        return _Kept(keeping, tensor)

    def unpack(kept: Any) -> Tensor:
        tensor: Tensor = kept.tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield keeping
