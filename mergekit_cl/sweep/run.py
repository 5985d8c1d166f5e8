"""A sweep from bound methods to the weights that it would take: plan, read once, predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergekit_cl.architectures import compare_configs
from mergekit_cl.decide.minimax import minimax_weights
from mergekit_cl.decide.weight_grid import Weights, best_point, grid, rounded
from mergekit_cl.divergence.summary import Parent
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.freshness import check_twins, stale_sidecars
from mergekit_cl.merge.linear import normalized
from mergekit_cl.methods.linear import report_operands
from mergekit_cl.methods.method import Method
from mergekit_cl.native.kernel import can_compile
from mergekit_cl.partial import WholeDigests
from mergekit_cl.plan import Operand, Plan, Recipe, Selection, plan_merge
from mergekit_cl.report.amounts import duration, size
from mergekit_cl.report.progress import Start
from mergekit_cl.results import TensorResult
from mergekit_cl.sidecar import parent_of
from mergekit_cl.sweep.evaluate import Prepare, closed_form, each_merge
from mergekit_cl.sweep.reading import (
    Swept,
    bytes_per_worker,
    bytes_read,
    choose_workers,
    in_order,
    measured_steps,
    read_all,
    seconds_expected,
)
from mergekit_cl.sweep.result import Point, Sweep, measure_of, names_of
from mergekit_cl.vocabulary import Vocab

Array = np.ndarray[Any, np.dtype[np.float64]]
Predict = Callable[[Sequence[Weights]], Array]
"""Weights of N points -> (N, P) nats per example."""


@dataclass(frozen=True)
class SweepRequest:
    """What to look at.

    method_at: the merge at given weights (None: equal ones), with a sidecar for every input.
    points: per line of the grid. is_linear: whether it is a weighted mean, whose losses have a
    closed form.
    """

    method_at: Callable[[Weights | None], Method]
    points: int
    is_linear: bool
    selection: Selection
    vocab: Vocab = "error"
    threads: int | None = None
    memory: int | None = None


def describe_sweep(request: SweepRequest) -> dict[str, Any]:
    """What `--dry-run` tells of it, from headers."""
    method, plan = _plan(request)
    workers = choose_workers(plan, request.threads, request.memory)
    return {
        "points": len(grid(len(method.checkpoints), request.points)),
        "bytes_read": bytes_read(plan),
        "workers": workers,
        "buffer_bytes": workers * bytes_per_worker(plan),
    }


def run_sweep(request: SweepRequest, progress: Start, tell: Callable[[str], None]) -> Sweep:
    """Predict every parent's loss at every point, in one pass over the files.

    tell: told the cost before it is paid. Raises InputError where a sidecar predicts nothing,
    MismatchError for one of other weights, NonFiniteError, and what planning raises.
    """
    started = time.perf_counter()
    method, plan = _plan(request)
    workers = choose_workers(plan, request.threads, request.memory)
    points = grid(len(method.checkpoints), request.points)
    prepare = closed_form if request.is_linear else _every_merge(request, points)
    nbytes = bytes_read(plan)
    expected = duration(seconds_expected(plan, prepare, workers))
    how = "sums for all weights" if request.is_linear else f"{len(points)} merges of every block"
    tell(f"sweep: {how} in one read of {size(nbytes)}, about {expected} of arithmetic")
    whole = WholeDigests(plan)
    read = read_all(plan, prepare, workers=workers, advance=progress("sweep", nbytes))
    results = {
        name: whole.complete(plan.steps[name], TensorResult("", one.operand_digests, ()))
        for name, one in read.items()
    }
    for name, result in results.items():
        check_twins(plan.steps[name], result)
    _refuse_stale(method, plan, results)
    parents = [
        parent_of(str(checkpoint.path), sidecar)
        for checkpoint, sidecar in zip(method.checkpoints, method.sidecars, strict=True)
    ]
    measure, factors = measure_of(parents)
    constants = _copied(plan, read, len(parents))
    if request.is_linear:
        forms = _merged(plan, read, (len(parents),) * 3)
        chosen = _optimum(forms, constants, factors)
        found = _points([*points, chosen], _closed(forms, constants)([*points, chosen]), factors)
        best = found[best_point([p.weights for p in found], [p.losses for p in found])]
        found = found[:-1]
    else:
        squares = _merged(plan, read, (len(points), len(parents)))
        found = _points(points, (squares + constants) / 2, factors)
        best = found[best_point(points, [p.losses for p in found])]
    without = _without_fisher(plan, results, len(parents))
    return Sweep(
        asked=request.points,
        parents=names_of(parents),
        measure=measure,
        points=tuple(found),
        best=best,
        exact=request.is_linear,
        without_fisher=without,
        notes=tuple(_notes(parents, without)),
        plan_notes=plan.notes,
        seconds=time.perf_counter() - started,
        nbytes=nbytes,
    )


def _plan(request: SweepRequest) -> tuple[Method, Plan]:
    """The merge at equal weights into float32: which rounding is left out, and which operands."""
    method = request.method_at(None)
    for model, sidecar in zip(method.checkpoints, method.sidecars, strict=True):
        if sidecar is None or sidecar.metadata.get("estimator") not in ("mc", "exact"):
            said = None if sidecar is None else sidecar.metadata.get("estimator")
            path = model.path if sidecar is None else sidecar.checkpoint.path
            raise InputError(
                "a sweep needs Fisher sidecars that predict a loss: mc or exact ones",
                detail=f"{path}: {said or 'no sidecar'}",
                hint=f"clmerge fisher {model.path} --data FILE --estimator mc",
            )

    def fishers(name: str, before: int) -> tuple[tuple[Operand, ...], tuple[int | None, ...]]:
        return report_operands(name, before, method.sidecars)

    return method, plan_merge(
        method.checkpoints,
        _recipe(method),
        selection=request.selection,
        dtype="F32",
        shard_size=2**63,
        notes=[*compare_configs(method.checkpoints), *method.notes],
        carries=method.carries,
        vocab=request.vocab,
        fishers=fishers,
    )


def _recipe(method: Method) -> Recipe:
    assert method.recipe is not None
    return method.recipe


def _every_merge(request: SweepRequest, points: Sequence[Weights]) -> Prepare:
    recipes = [_recipe(request.method_at(weights)) for weights in points]
    return each_merge(recipes, compiled=can_compile())


def _merged(plan: Plan, read: Mapping[str, Swept], shape: tuple[int, ...]) -> Array:
    steps = [step for step in measured_steps(plan) if step.kernel is not None]
    return in_order([np.zeros(shape), *(read[step.name].sums for step in steps)])


def _copied(plan: Plan, read: Mapping[str, Swept], parents: int) -> Array:
    steps = [step for step in measured_steps(plan) if step.kernel is None]
    return in_order([np.zeros(parents), *(read[step.name].sums for step in steps)])


def _closed(forms: Array, constants: Array) -> Predict:
    def predict(points: Sequence[Weights]) -> Array:
        w = np.asarray([normalized(point) for point in points])
        found: Array = (np.einsum("pkl,nk,nl->np", forms, w, w) + constants) / 2
        return found

    return predict


def _optimum(forms: Array, constants: Array, factors: Sequence[float]) -> Weights:
    scale = np.asarray(factors)
    return rounded(minimax_weights(forms * scale[:, None, None], constants * scale).tolist())


def _points(points: Sequence[Weights], kl: Array, factors: Sequence[float]) -> list[Point]:
    losses = kl * np.asarray(factors)
    return [
        Point(weights, tuple(row), tuple(loss))
        for weights, row, loss in zip(points, kl.tolist(), losses.tolist(), strict=True)
    ]


def _refuse_stale(method: Method, plan: Plan, results: Mapping[str, TensorResult]) -> None:
    measured = {step.name: step for step in measured_steps(plan)}
    for k in sorted(stale_sidecars(method, Plan(measured, plan.layout, ()), results)):
        sidecar, model = method.sidecars[k], method.checkpoints[k]
        assert sidecar is not None
        raise MismatchError(
            "a Fisher sidecar was taken at other weights: it predicts nothing",
            detail=f"{sidecar.checkpoint.path}: {model.path} has changed since",
            hint=f"clmerge fisher {model.path} --data FILE",
        )


def _without_fisher(
    plan: Plan, results: Mapping[str, TensorResult], parents: int
) -> tuple[tuple[str, ...], ...]:
    """Tensors that are not the same in all inputs, and of which a parent's Fisher says nothing."""
    differing = [
        step
        for step in measured_steps(plan)
        if len({results[step.name].operand_digests[k] for k in step.parents}) > 1
    ]
    return tuple(
        tuple(step.name for step in differing if step.fishers[k] is None) for k in range(parents)
    )


def _notes(parents: Sequence[Parent], without: Sequence[Sequence[str]]) -> list[str]:
    notes = []
    for parent, names in zip(parents, without, strict=True):
        if names:
            more = ", ..." if len(names) > 3 else ""
            notes.append(
                f"{parent.path}'s Fisher leaves out {len(names)} tensors that differ: what they "
                f"cost is not in its prediction ({', '.join(names[:3])}{more})"
            )
    lacking = [parent.path for parent in parents if parent.calibration is None]
    if lacking and len(lacking) < len(parents):
        notes.append(
            f"without a calibration of {', '.join(lacking)} no prediction is calibrated "
            "(clmerge fisher MODEL --base BASE makes one)"
        )
    return notes
