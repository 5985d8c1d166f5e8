"""A tied weight's gradient, kept between its head and its embedding.

The head's pass leaves out the rows that the example's own tokens look up (see fisher.tied) and
hands them over here; the embedding's pass, all layers later, takes them up again. What waits is
(U, d) numbers per example and pass, U its distinct tokens: about a boundary activation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisher.errors import StackError
from fisher.squares.sums import Sums
from fisher.tied import CrossTerm


class HeadHalf:
    """Collects what the head's passes of one batch leave open."""

    def __init__(self, crosses: Mapping[str, CrossTerm], tied: tuple[str, ...]) -> None:
        if set(crosses) != set(tied):
            name = sorted(set(crosses) ^ set(tied))[0]
            raise StackError(f"{name} is not simply an embedding and a head")
        self.crosses = crosses
        self.tensors: dict[str, Tensor] = {}

    def pass_begins(self, number: int) -> None:
        """Nothing is there before."""

    def pass_ended(self, number: int) -> None:
        """Take the open rows of one backward pass."""
        for name, cross in self.crosses.items():
            for example, (rows, gradient) in enumerate(cross.sums()):
                self.tensors[f"rows.{name}.{example}"] = rows
                self.tensors[f"gradient.{name}.{example}.{number}"] = gradient
            cross.clear()

    def closed(self, sums: Sums) -> dict[str, Tensor]:
        """Everything to keep, with what the examples' traces are so far."""
        traces = {f"trace.{name}": sums.traces(name).clone() for name in self.crosses}
        return {**self.tensors, **traces}


class EmbeddingHalf:
    """Gives it back to the embedding's passes of the same batch."""

    def __init__(self, kept: Mapping[str, Tensor], sums: Sums, tied: tuple[str, ...]) -> None:
        self._sums = sums
        device = {name: sums.square[name].device for name in tied}
        self._kept = {key: _placed(key, tensor, device) for key, tensor in kept.items()}
        self.crosses: dict[str, CrossTerm] = {}
        for name in tied:
            rows: list[Tensor] = []
            while f"rows.{name}.{len(rows)}" in self._kept:
                rows.append(self._kept[f"rows.{name}.{len(rows)}"])
            self.crosses[name] = CrossTerm(rows, None, sums.square[name])
        self.traces = {name: self._kept[f"trace.{name}"] for name in tied}

    def pass_begins(self, number: int) -> None:
        """Put the head's rows of one backward pass in place."""
        for name, cross in self.crosses.items():
            cross.gradient = [
                self._kept[f"gradient.{name}.{example}.{number}"]
                for example in range(len(cross.rows))
            ]

    def pass_ended(self, number: int) -> None:
        """Square what has come together."""
        self._sums.end_pass()


def _placed(key: str, tensor: Tensor, device: Mapping[str, torch.device]) -> Tensor:
    name = next(name for name in device if f".{name}" in key)
    return tensor.to(device[name])
