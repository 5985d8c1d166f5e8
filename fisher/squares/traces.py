"""The summed squares of each example of one batch, tensor by tensor.

They come as single numbers, one for every block of a weight and example. Adding each to its place
at once would take more calls than the squares do, so numbers wait until somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Traces:
    """float64 sums, one line of `size` examples for each name, on the device of its tensor."""

    def __init__(self, like: Mapping[str, Tensor], size: int) -> None:
        names: dict[torch.device, list[str]] = {}
        for name, tensor in like.items():
            names.setdefault(tensor.device, []).append(name)
        self._size = size
        self._tables = {
            device: torch.zeros(len(group), size, dtype=torch.float64, device=device)
            for device, group in names.items()
        }
        self._rows = {
            name: (device, row) for device, group in names.items() for row, name in enumerate(group)
        }
        self._order = list(like)
        self._waiting: dict[torch.device, list[tuple[int, Tensor]]] = {d: [] for d in names}

    def __getitem__(self, name: str) -> Tensor:
        """(size,) of one name, with all that waited: a view to add to."""
        device, row = self._rows[name]
        self._settle(device)
        return self._tables[device][row]

    def lines(self) -> dict[str, Tensor]:
        """All of them on the CPU, in the order given."""
        for device in self._tables:
            self._settle(device)
        tables = {device: table.cpu() for device, table in self._tables.items()}
        return {name: tables[self._rows[name][0]][self._rows[name][1]] for name in self._order}

    def later(self, name: str, examples: Sequence[int], numbers: Sequence[Tensor]) -> None:
        """Add numbers () of the examples, any number of rounds through them, before it is asked."""
        device, row = self._rows[name]
        places = [row * self._size + example for example in examples]
        rounds = len(numbers) // len(places)
        self._waiting[device] += zip(places * rounds, numbers, strict=True)

    def _settle(self, device: torch.device) -> None:
        if not self._waiting[device]:
            return
        places, numbers = zip(*self._waiting[device], strict=True)
        where = torch.tensor(places, device=device)
        flat = self._tables[device].view(-1)
        # index_put adds in a fixed order on every device
        flat.index_put_((where,), torch.stack(numbers).double(), accumulate=True)
        self._waiting[device] = []
