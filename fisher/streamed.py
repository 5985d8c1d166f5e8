"""The estimator for a model that does not fit: one layer, its Fisher and one batch in memory.

    forward    for each layer: load it, run every batch through it, keep what leaves it, drop it
    top        labels are drawn and gradients started, as for the whole model
    backward   for each layer, last to first: load it, run every batch from what was kept, square
               what comes back, keep the gradient at its input, hand its diagonal over, drop it
    bottom     the embeddings, where tied weights meet their other half

A layer is computed forward twice and backward once; nothing else differs from `Accumulator`, whose
squares, draws and sums these are. Read `run` first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import float_info
from typing import Any

import torch
from torch import Tensor, nn

from fisher.accumulator import ESTIMATORS, Estimate
from fisher.batch import Batch
from fisher.counted import counted
from fisher.errors import EstimatorError, StackError
from fisher.layered.boundaries import Boundaries
from fisher.layered.frame import Frame
from fisher.layered.halves import EmbeddingHalf, HeadHalf
from fisher.layered.part import Part, given
from fisher.layered.slots import Slots
from fisher.layered.stack import find_stack
from fisher.layered.survey import survey
from fisher.objective import Passes, passes
from fisher.quiet import quiet
from fisher.squares.sums import Sums, standard_errors
from fisher.squares.uses import NeedsSingle, Uses

Load = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Gives the values of parameters, on the device and in the dtype to compute in."""

Finish = Callable[[str, Mapping[str, Tensor]], None]
"""Takes a part's name and its diagonal, mean per example, once and for all."""


@dataclass(frozen=True)
class Ways:
    """What a streamed run asks of its surroundings.

    load, finish: see there. activations, gradients: where these wait between layers; gradients must
    last. recorded: what `record` was given before an interruption, in that order. advance: told of
    every row that has passed a layer or the top.
    """

    load: Load
    finish: Finish
    activations: Boundaries
    gradients: Boundaries
    record: Callable[[dict[str, Any]], None]
    recorded: Sequence[Mapping[str, Any]]
    advance: Callable[[int], None]


class Streamed:
    """One estimate, layer by layer.

    model: its parameters on the meta device, its buffers in place on `device`. batches: gives the
    same batches each time it is called. The rest as for `Accumulator`.
    Raises StackError for a model that is no single stack of layers.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterator[Batch]],
        ways: Ways,
        *,
        device: torch.device,
        estimator: str = "mc",
        draws: int = 1,
        seed: int = 0,
        include: Callable[[str], bool] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        if estimator not in ESTIMATORS:
            raise EstimatorError(f"estimator {estimator!r} is none of {', '.join(ESTIMATORS)}")
        if draws < 1 or (draws > 1 and estimator != "mc"):
            raise EstimatorError("draws counts the labels that mc draws: at least 1, otherwise 1")
        self.single_because: str | None = None
        self._model, self._batches, self._ways, self._device = model, batches, ways, device
        self._estimator, self._draws, self._seed = estimator, draws, seed
        self._counted = counted(model, include=include, frozen=frozen)
        if not self._counted.parameters:
            raise EstimatorError("no parameter is left to estimate")
        self._stack = find_stack(model)
        self._slots = Slots(model)
        self._frame = Frame(model, self._stack, device)
        self._errors: dict[str, float | None] = {}
        self._top: Mapping[str, Any] = {}
        self._examples = sum(len(batch) for batch in batches())
        self._traces = torch.zeros(self._examples, dtype=torch.float64)

    @property
    def steps(self) -> int:
        """What `advance` counts up to."""
        return self._examples * (2 * len(self._stack) + 1)

    def run(self) -> Estimate:
        """Every pass that is not recorded yet; the estimate without its diagonal."""
        with quiet(self._model, ()), torch.autocast(self._device.type, enabled=False):
            self._survey = survey(self._model, self._stack, self._slots, next(self._groups())[1])
            self._frame.form = self._survey.form
            lowest = self._resume()
            with self._filled(self._survey.early, wanted=()):
                self._forward(lowest)
                if not self._top:
                    self._head()
                for index in range(lowest - 1, -1, -1):
                    self._layer(index)
            self._bottom()
        known = self._top["known"]
        return replace(
            self.outlook(),
            tokens=self._top["tokens"],
            mean_nll=self._top["nll"] / known if known else None,
            standard_error=dict(self._errors),
            trace_standard_error=self._whole_error(),
        )

    def outlook(self) -> Estimate:
        """What is known of the estimate beforehand; the longest numbers stand for the others."""
        return Estimate(
            diagonal={},
            examples=self._examples,
            tokens=sum(batch.tokens for batch in self._batches()),
            mean_nll=float_info.min,
            missing=dict(self._counted.missing),
            standard_error=dict.fromkeys(self._counted.parameters, float_info.min),
            tied=dict(self._counted.tied),
            estimator=self._estimator,
            draws=self._draws,
            seed=self._seed,
            trace_standard_error=float_info.min,
        )

    def relative_error(self) -> float | None:
        """Standard error of the trace over the trace; None where it is not known."""
        error, trace = self._whole_error(), float(self._traces.sum()) / self._examples
        return error / trace if error is not None and trace > 0 else None

    def _whole_error(self) -> float | None:
        sums = torch.stack([self._traces.sum(), self._traces.square().sum()])
        return standard_errors(sums[:1], sums[1:], self._examples)[0]

    def _add_traces(self, traces: Sequence[float]) -> None:
        if traces:
            self._traces += torch.tensor(traces, dtype=torch.float64)

    def _resume(self) -> int:
        """Take in what is recorded; gives the lowest layer that is finished, or their number."""
        lowest = len(self._stack)
        for entry in self._ways.recorded:
            self._errors.update(entry.get("errors", {}))
            self._add_traces(entry.get("traces", ()))
            self.single_because = self.single_because or entry.get("single")
            if entry["done"] == "top":
                self._top = entry
                self._ways.advance(self._examples)
            elif entry["done"] == "layer":
                lowest = int(entry["layer"])
                self._ways.advance(self._examples)
        return lowest

    def _forward(self, lowest: int) -> None:
        """What enters each layer that is not finished, and what leaves the last one."""
        kept = self._ways.activations
        # Below a finished layer only the inputs of the layers still to come are needed.
        needed = len(self._stack) if not self._top else lowest - 1
        settled = -1
        if kept.lasting:
            found = [e["layer"] for e in self._ways.recorded if e["done"] == "forward"]
            settled = max(found, default=-1)
        if settled < 0 <= needed:
            with self._filled(self._embeddings(), wanted=()), torch.no_grad():
                for number, batch in self._groups():
                    kept.put(_entering(0), number, {"hidden": self._frame.bottom(batch)})
            self._settle(0)
        for index in range(len(self._stack)):
            if not max(settled, 0) <= index < needed:
                self._ways.advance(self._examples)
                continue
            with self._filled(self._survey.layers[index], wanted=()), torch.no_grad():
                for number, batch in self._groups():
                    hidden = self._hidden(index, number)
                    left = self._frame.layer(batch, index, hidden)
                    kept.put(_entering(index + 1), number, {"hidden": left})
                    self._ways.advance(len(batch))
            self._settle(index + 1)

    def _settle(self, index: int) -> None:
        if self._ways.activations.lasting:
            self._ways.activations.settle(_entering(index))
            self._ways.record({"done": "forward", "layer": index})

    def _head(self) -> None:
        """Labels, losses, and the gradient at what leaves the last layer."""
        index, tied = len(self._stack), self._tied()
        said: dict[str, Any] = {"tokens": 0, "nll": 0.0, "known": 0}

        def plan(root: Tensor, batch: Batch, row: int = 0) -> Passes:
            made = passes(
                root, batch, estimator=self._estimator, draws=self._draws, seed=self._seed
            )
            said["nll"] += made.nll
            said["known"] += made.known
            return made

        with self._filled(self._survey.late, self._wanted(self._survey.late)) as filled:
            part = self._part(filled, lambda batch, leaf: self._frame.top(batch, _sure(leaf)))
            for number, batch in self._groups():
                hidden = self._hidden(index, number)
                half: list[HeadHalf] = []

                def meet(uses: Uses, half: list[HeadHalf] = half) -> Any:
                    half.append(HeadHalf(uses.crosses(part.sums.square), tied))
                    return half[0].crosses, {}, half[0]

                gradients = self._squared(part, batch, hidden, plan, plan, meet if tied else None)
                if half:
                    self._ways.gradients.put("tied", number, half[0].closed(part.sums))
                self._close(part, tied)
                self._keep(index, number, gradients)
                said["tokens"] += batch.tokens
                self._ways.advance(len(batch))
            for name in tied:
                self._ways.gradients.put(f"sums.{name}", 0, {"square": part.sums.square[name]})
                self._ways.gradients.settle(f"sums.{name}")
            if tied:
                self._ways.gradients.settle("tied")
        self._top = {"done": "top", **said}
        self._finish(part, "after the layers", self._top, index, leaving_out=tied)

    def _layer(self, index: int) -> None:
        names = self._survey.layers[index]

        def outputs(batch: Batch, leaf: Tensor | None) -> Tensor:
            return self._frame.layer(batch, index, _sure(leaf))

        with self._filled(names, self._wanted(names)) as filled:
            part = self._part(filled, outputs)
            for number, batch in self._groups():
                known = self._gradients(index + 1, number)
                gradients = self._squared(
                    part,
                    batch,
                    self._hidden(index, number),
                    lambda root, rows, known=known: given(known),
                    lambda root, row, i, known=known: given([g[i : i + 1] for g in known]),
                    None,
                )
                self._close(part)
                self._keep(index, number, gradients)
                self._ways.advance(len(batch))
        name = f"{self._stack.prefix}.{index}"
        self._finish(part, name, {"done": "layer", "layer": index}, index)

    def _bottom(self) -> None:
        """What comes before the layers: embeddings, and the second half of tied weights."""
        if any(entry["done"] == "bottom" for entry in self._ways.recorded):
            return
        tied, names = self._tied(), self._embeddings() + self._survey.early
        with self._filled(names, self._wanted(names)) as filled:
            part = self._part(filled, lambda batch, leaf: self._frame.bottom(batch))
            for name in tied:
                part.sums.square[name].copy_(self._ways.gradients.get(f"sums.{name}", 0)["square"])
            for number, batch in self._groups():
                known = self._gradients(0, number)

                def meet(uses: Uses, number: int = number) -> Any:
                    kept = self._ways.gradients.get("tied", number)
                    half = EmbeddingHalf(kept, part.sums, tied)
                    return half.crosses, half.traces, half

                self._squared(
                    part,
                    batch,
                    None,
                    lambda root, rows, known=known: given(known),
                    lambda root, row, i, known=known: given([g[i : i + 1] for g in known]),
                    meet if tied else None,
                )
                self._close(part)
        self._finish(part, "before the layers", {"done": "bottom"}, None)

    # Steps that the passes share.

    def _groups(self) -> Iterator[tuple[int, Batch]]:
        for number, batch in enumerate(self._batches()):
            yield number, batch.to(self._device)

    def _hidden(self, index: int, number: int) -> Tensor:
        """What enters layer `index`."""
        return self._ways.activations.get(_entering(index), number)["hidden"].to(self._device)

    def _gradients(self, index: int, number: int) -> list[Tensor]:
        """The gradient there, per pass."""
        kept = self._ways.gradients.get(_entering(index), number)
        return [kept[str(turn)].to(self._device) for turn in range(len(kept))]

    def _keep(self, index: int, number: int, gradients: Sequence[Tensor]) -> None:
        kept = {str(turn): gradient for turn, gradient in enumerate(gradients)}
        self._ways.gradients.put(_entering(index), number, kept)

    def _filled(self, names: Sequence[str], wanted: Collection[str]) -> Any:
        return self._slots.filled(self._ways.load(names), wanted)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._counted.parameters]

    def _tied(self) -> tuple[str, ...]:
        return tuple(self._wanted(self._survey.tied))

    def _embeddings(self) -> tuple[str, ...]:
        return self._survey.embeddings

    def _part(self, filled: Mapping[str, nn.Parameter], outputs: Any) -> Part:
        parameters = {n: p for n, p in filled.items() if n in self._counted.parameters}
        return Part(self._model, parameters, outputs, Sums(parameters))

    def _squared(
        self, part: Part, batch: Batch, hidden: Tensor | None, plan: Any, row_plan: Any, meet: Any
    ) -> list[Tensor]:
        """A batch's squares into the part's sums, rows together where that is possible."""
        part.examine(batch, hidden)
        if part.single_because is None:
            try:
                return part.together(batch, hidden, plan, meet)
            except NeedsSingle as reason:
                part.single_because = str(reason)
        if meet is not None:
            raise StackError(f"a tied weight's rows cannot go together: {part.single_because}")
        return part.singly(batch, hidden, row_plan, self._draws)

    def _close(self, part: Part, leaving_out: Collection[str] = ()) -> None:
        if part.single_because is None:
            part.close(self._draws, leaving_out)

    def _finish(
        self,
        part: Part,
        name: str,
        entry: Mapping[str, Any],
        index: int | None,
        leaving_out: Sequence[str] = (),
    ) -> None:
        """Hand a part's diagonal over, record it, forget what it was computed from."""
        part.let_go()
        n = self._examples
        diagonal = {
            parameter: total.div_(n * self._draws)
            for parameter, total in part.sums.square.items()
            if parameter not in leaving_out
        }
        errors = dict(zip(part.sums.square, part.sums.errors(n), strict=False))
        found = {parameter: errors[parameter] for parameter in diagonal}
        self._errors.update(found)
        self.single_because = self.single_because or part.single_because
        self._ways.finish(name, diagonal)
        if index is not None:
            self._ways.gradients.settle(_entering(index))
        self._add_traces(part.traces)
        self._ways.record(
            {**entry, "errors": found, "single": part.single_because, "traces": part.traces}
        )
        if index is not None:
            self._ways.activations.drop(_entering(index))
        self._ways.gradients.drop(_entering(0 if index is None else index + 1))


def _entering(index: int) -> str:
    """The shelf of what enters layer `index`; of what leaves the last one, for their number."""
    return f"layer-{index}"


def _sure(leaf: Tensor | None) -> Tensor:
    assert leaf is not None
    return leaf
