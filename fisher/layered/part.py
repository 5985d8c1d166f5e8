"""The squares of one part of a model for one batch, given the gradients that leave it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fisher.batch import Batch
from fisher.counted import Counted
from fisher.errors import GraphError, StackError
from fisher.objective import Passes
from fisher.squares.operations import OPERATIONS
from fisher.squares.probe import pair_of, unseen, why_single
from fisher.squares.single import collect
from fisher.squares.sums import Sums
from fisher.squares.uses import NeedsSingle, Uses
from fisher.tied import CrossTerm

_ENTERING = "entering hidden states"


class Half(Protocol):
    """What meets a tied weight's gradient between passes."""

    def pass_begins(self, number: int) -> None:
        """Before backward pass `number`."""

    def pass_ended(self, number: int) -> None:
        """After it."""


@dataclass
class Part:
    """A layer, or what comes before or after all of them, its weights in place.

    outputs: (batch, entering hidden states or None) -> what leaves it. single_because: why rows are
    taken one at a time, None while they go together. traces: the summed squares of each example.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    outputs: Callable[[Batch, Tensor | None], Tensor]
    sums: Sums
    single_because: str | None = None
    traces: list[float] = field(default_factory=list)
    _counted: Counted = field(init=False)
    _examined: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._counted = Counted({n: (p,) for n, p in self.parameters.items()}, {}, {}, names)

    def examine(self, batch: Batch, entering: Tensor | None) -> None:
        """Find out, once, whether rows can be taken together."""
        if self._examined:
            return
        self._examined = True
        more = {} if entering is None else {_ENTERING: entering.detach()}
        pair = pair_of(Batch({**batch.inputs, **more}, batch.labels, batch.row_ids))

        def outputs(_: nn.Module, rows: Batch) -> Tensor:
            inputs = {name: t for name, t in rows.inputs.items() if name != _ENTERING}
            leaf = rows.inputs.get(_ENTERING)
            return self.outputs(Batch(inputs, rows.labels, rows.row_ids), leaf)

        self.single_because = why_single(self.model, outputs, pair, self._counted)

    def close(self, draws: int, leaving_out: Collection[str] = ()) -> None:
        """Close a batch; weights left out do not count in the examples' traces."""
        self.traces += self.sums.example_traces(draws, leaving_out)
        self.sums.end(draws)

    def let_go(self) -> None:
        """Forget the weights; the sums stay."""
        self.parameters = {}
        self._counted = Counted({}, {}, {}, {})

    def together(
        self,
        batch: Batch,
        entering: Tensor | None,
        plan: Callable[[Tensor, Batch], Passes],
        meet: Callable[[Uses], tuple[Mapping[str, CrossTerm], Mapping[str, Tensor], Half]] | None,
    ) -> list[Tensor]:
        """Add a batch's squares; gives the gradient at the entering hidden states per pass.

        meet: what tied weights' other halves need. Raises NeedsSingle before anything is added.
        """
        leaf = None if entering is None else entering.detach().requires_grad_()
        uses = Uses(self._counted.names, batch, self.sums, OPERATIONS)
        with uses:
            root = self.outputs(batch, leaf)
        uses.forward_ended()
        passes = plan(root, batch)
        crosses, traces, half = meet(uses) if meet else (uses.crosses(self.sums.square), {}, None)
        self.sums.begin(len(batch), crosses, traces)
        gradients = []
        for number, gradient in enumerate(passes.gradients):
            if half is not None:
                half.pass_begins(number)
            if root.requires_grad:
                try:
                    uses.backward(root, gradient, again=number + 1 < passes.count)
                except NeedsSingle as reason:
                    raise GraphError(f"a batch changed the model's graph: {reason}") from None
            if names := unseen(self._counted):
                raise GraphError(f"a batch changed the model's graph: {names[0]} enters elsewhere")
            if half is not None:
                half.pass_ended(number)
            else:
                self.sums.end_pass()
            gradients += _taken(leaf)
        return gradients

    def singly(
        self,
        batch: Batch,
        entering: Tensor | None,
        plan: Callable[[Tensor, Batch, int], Passes],
        draws: int,
    ) -> list[Tensor]:
        """The same, one row at a time by torch's own autograd; closes the rows in the sums."""
        found: list[list[Tensor]] = []
        for index in range(len(batch)):
            row = batch.row(index)
            leaf = None if entering is None else entering[index : index + 1].detach()
            leaf = None if leaf is None else leaf.requires_grad_()
            root = self.outputs(row, leaf)
            passes = plan(root, row, index)
            self.sums.begin(1, {})
            gradients = []
            for number, gradient in enumerate(passes.gradients):
                if root.requires_grad:
                    again = number + 1 < passes.count
                    torch.autograd.backward(root, gradient, retain_graph=again)
                collect(self._counted, self.sums)
                gradients += _taken(leaf)
            self.close(draws)
            found.append(gradients)
        return [torch.cat(rows) for rows in zip(*found, strict=True)]


def given(gradients: Sequence[Tensor]) -> Passes:
    """Backward passes from gradients that are known."""
    return Passes(iter(gradients), len(gradients), nll=0.0, known=0)


def _taken(leaf: Tensor | None) -> list[Tensor]:
    """The gradient that arrived at a leaf, which is cleared."""
    if leaf is None:
        return []
    if leaf.grad is None:
        raise StackError("no gradient goes through a layer")
    gradient, leaf.grad = leaf.grad, None
    return [gradient]
