"""Summing per-example squares over batches, so that a run can stop after any of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisher.batch import Batch
from fisher.counted import counted
from fisher.errors import BatchError, EstimatorError, GraphError, StateError
from fisher.objective import Passes, passes
from fisher.quiet import quiet
from fisher.squares.operations import OPERATIONS
from fisher.squares.probe import pair_of, unseen, why_single
from fisher.squares.single import collect
from fisher.squares.sums import Sums
from fisher.squares.uses import NeedsSingle, Uses

ESTIMATORS = ("mc", "exact", "empirical")

Loss = Callable[[nn.Module, Batch], Tensor]
"""A loss of one's own: (model, batch) -> (B,), one number per example, summed not averaged."""


@dataclass(frozen=True)
class Estimate:
    """A diagonal Fisher and what is needed to read it.

    diagonal: parameter name -> mean per example of the squared gradient, shaped like the parameter.
    tokens: positions that carried a loss. mean_nll: nats per token of the true labels, None where
    none was given. missing: name -> reason. standard_error: name -> standard error of the tensor's
    sum, trace_standard_error: of the sum over all of them; None for fewer than two examples.
    tied: name -> the name it is stored under.
    """

    diagonal: dict[str, Tensor]
    examples: int
    tokens: int
    mean_nll: float | None
    missing: dict[str, str]
    standard_error: dict[str, float | None]
    tied: dict[str, str]
    estimator: str
    draws: int
    seed: int
    trace_standard_error: float | None = None

    def metadata(self, level: str = "example") -> dict[str, Any]:
        """What `fisher.save` says of the diagonal (docs/sidecar.md).

        level: what one example is: "example" (one label), or "sequence" of a language model.
        """
        return {
            "estimator": self.estimator,
            "unit": "per_example",
            "level": level,
            "draws": self.draws,
            "seed": self.seed,
            "examples": self.examples,
            "tokens": self.tokens,
            "mean_nll": self.mean_nll,
            "trace_standard_error": self.trace_standard_error,
            "missing": self.missing,
            "tied": self.tied,
            "tensors": {n: {"standard_error": error} for n, error in self.standard_error.items()},
        }


class Accumulator:
    """The estimator, one batch at a time. The model is its own again after each `add`.

    estimator: one of `ESTIMATORS`; by default `mc`, or `empirical` with a loss of one's own.
    include: says of a parameter's name whether it counts. frozen: names that are not trained.
    loss: replaces the likelihood, for `empirical` alone. `examples`, `tokens`: what was added.
    `single_because`: why rows are taken one at a time, None while they go together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: str | None = None,
        draws: int = 1,
        seed: int = 0,
        include: Callable[[str], bool] | None = None,
        frozen: Collection[str] = (),
        loss: Loss | None = None,
    ) -> None:
        estimator = estimator or ("mc" if loss is None else "empirical")
        if estimator not in ESTIMATORS:
            raise EstimatorError(f"estimator {estimator!r} is none of {', '.join(ESTIMATORS)}")
        if draws < 1 or (draws > 1 and estimator != "mc"):
            raise EstimatorError("draws counts the labels that mc draws: at least 1, otherwise 1")
        if loss is not None and estimator != "empirical":
            raise EstimatorError("a loss of one's own has no labels to draw: use empirical")
        self.examples = 0
        self.tokens = 0
        self.single_because: str | None = None
        self._model = model
        self._estimator, self._draws, self._seed = estimator, draws, seed
        self._loss = loss
        self._counted = counted(model, include=include, frozen=frozen)
        if not self._counted.parameters:
            raise EstimatorError("no parameter is left to estimate")
        self._sharded = any(hasattr(p, "to_local") for p in model.parameters())  # DTensors
        self._sums = Sums({name: group[0] for name, group in self._counted.parameters.items()})
        self._examined = False
        self._nll = 0.0
        self._known = 0

    def add(self, batch: Batch, *, labels: Sequence[Tensor] | None = None) -> None:
        """Add a batch's examples. `labels`, one tensor per draw, replace the ones `mc` draws."""
        if labels is not None and (self._estimator != "mc" or len(labels) != self._draws):
            raise EstimatorError(f"labels replace the draws of mc: {self._draws} of them")
        batch = batch.to(next(iter(self._counted.parameters.values()))[0].device)
        with ExitStack() as stack:
            parameters = [p for group in self._counted.parameters.values() for p in group]
            stack.enter_context(quiet(self._model, parameters))
            if self._sharded:
                from fisher.sharded import following

                stack.enter_context(following(self._model, self._counted))
            if not self._examined:
                pair = pair_of(batch)
                self.single_because = why_single(self._model, self._outputs, pair, self._counted)
                self._examined = True
            if self.single_because is None:
                try:
                    self._add_together(batch, labels)
                except NeedsSingle as reason:
                    self.single_because = str(reason)
            if self.single_because is not None:
                if self._sharded:
                    raise EstimatorError(
                        f"rows of a sharded model cannot be taken one at a time: "
                        f"{self.single_because}"
                    )
                for index in range(len(batch)):
                    fixed = labels and [line[index : index + 1] for line in labels]
                    self._add_single(batch.row(index), fixed)
        self.examples += len(batch)
        self.tokens += batch.tokens

    def result(self) -> Estimate:
        """The estimate so far."""
        n = self._divisor()
        return self._estimate({name: total / n for name, total in self._sums.square.items()})

    def finish(self) -> Estimate:
        """The same in the memory of the sums, which are gone then: nothing can be added."""
        n = self._divisor()
        diagonal = {name: total.div_(n) for name, total in self._sums.square.items()}
        estimate = self._estimate(diagonal)
        self._sums.square = {}
        return estimate

    def _divisor(self) -> int:
        if not self.examples:
            raise BatchError("no example was added")
        return self.examples * self._draws

    def _estimate(self, diagonal: dict[str, Tensor]) -> Estimate:
        n = self.examples
        errors = self._sums.errors(n)
        return Estimate(
            diagonal=diagonal,
            examples=n,
            tokens=self.tokens,
            mean_nll=self._nll / self._known if self._known else None,
            missing=dict(self._counted.missing),
            standard_error=dict(zip(diagonal, errors[:-1], strict=True)),
            tied=dict(self._counted.tied),
            estimator=self._estimator,
            draws=self._draws,
            seed=self._seed,
            trace_standard_error=errors[-1],
        )

    def relative_error(self) -> float | None:
        """Standard error of the trace over the trace, so far; None where it is not known."""
        trace = float(self._sums.trace[-1]) / max(1, self.examples)
        error = self._sums.errors(self.examples)[-1]
        return error / trace if error is not None and trace > 0 else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs: tensors (the live ones, not copies) and values for JSON."""
        tensors = {f"square.{name}": total for name, total in self._sums.square.items()}
        tensors |= {"trace": self._sums.trace, "trace_square": self._sums.trace_square}
        return tensors, {
            **self.settings(),
            "examples": self.examples,
            "tokens": self.tokens,
            "nll": self._nll,
            "known": self._known,
            "examined": self._examined,
            "single_because": self.single_because,
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue where `state` was taken, to the same bits as without the interruption."""
        for key, value in self.settings().items():
            if numbers.get(key) != value:
                raise StateError(f"the saved state has {key} {numbers.get(key)!r}, not {value!r}")
        own, _ = self.state()
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise StateError(f"the saved state has no {name} of shape {tuple(tensor.shape)}")
        for name, tensor in own.items():
            if tensors[name] is not tensor:
                tensor.copy_(tensors[name])
        self.examples, self.tokens = numbers["examples"], numbers["tokens"]
        self._nll, self._known = numbers["nll"], numbers["known"]
        self._examined, self.single_because = numbers["examined"], numbers["single_because"]

    def map_squares(self, change: Callable[[Tensor, nn.Parameter], Tensor]) -> None:
        """Replace each parameter's sum of squares by `change(sum, parameter)`."""
        for name, total in self._sums.square.items():
            self._sums.square[name] = change(total, self._counted.parameters[name][0])

    def settings(self) -> dict[str, Any]:
        """What of `state` is the same however many rows were added."""
        return {"estimator": self._estimator, "draws": self._draws, "seed": self._seed}

    def _outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What gradients start from: logits (..., V), or the losses (B,) of one's own loss."""
        if self._loss is not None:
            losses = self._loss(model, batch)
            if losses.shape != (len(batch),):
                raise EstimatorError(
                    f"the loss must be one number per example, not of shape {tuple(losses.shape)}"
                )
            return losses
        output = model(**batch.inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def _passes(self, root: Tensor, batch: Batch, labels: Sequence[Tensor] | None) -> Passes:
        if self._loss is not None:
            return Passes(iter([torch.ones_like(root)]), 1, nll=0.0, known=0)
        return passes(
            root,
            batch,
            estimator=self._estimator,
            draws=self._draws,
            seed=self._seed,
            labels=labels,
        )

    def _add_together(self, batch: Batch, labels: Sequence[Tensor] | None) -> None:
        uses = Uses(self._counted.names, batch, self._sums, OPERATIONS)
        with uses:
            root = self._outputs(self._model, batch)
        uses.forward_ended()
        plan = self._passes(root, batch, labels)
        self._sums.begin(len(batch), uses.crosses(self._sums.square))
        for gradient, again in _with_more(plan):
            if root.requires_grad:
                try:
                    uses.backward(root, gradient, again=again)
                except NeedsSingle as reason:
                    raise GraphError(f"a batch changed the model's graph: {reason}") from None
            if names := unseen(self._counted):
                raise GraphError(f"a batch changed the model's graph: {names[0]} enters elsewhere")
            self._sums.end_pass()
        self._close(plan)

    def _add_single(self, row: Batch, labels: Sequence[Tensor] | None) -> None:
        root = self._outputs(self._model, row)
        plan = self._passes(root, row, labels)
        self._sums.begin(1, {})
        for gradient, again in _with_more(plan):
            if root.requires_grad:
                torch.autograd.backward(root, gradient, retain_graph=again)
            collect(self._counted, self._sums)
        self._close(plan)

    def _close(self, plan: Passes) -> None:
        self._sums.end(self._draws)
        self._nll += plan.nll
        self._known += plan.known


def _with_more(plan: Passes) -> Iterator[tuple[Tensor, bool]]:
    """Each gradient with whether another follows, for which the graph must stay."""
    for index, gradient in enumerate(plan.gradients):
        yield gradient, index + 1 < plan.count
