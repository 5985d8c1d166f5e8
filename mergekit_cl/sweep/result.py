"""What a sweep found: predicted losses of every parent at every point, and the weights to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_cl.decide.weight_grid import Weights
from mergekit_cl.divergence.summary import Parent

Measure = Literal["predicted_loss", "predicted_kl_per_token", "predicted_kl"]

UNITS: dict[Measure, str] = {
    "predicted_loss": "nats per token, calibrated",
    "predicted_kl_per_token": "nats per token of a diagonal Fisher: ranks, is no loss",
    "predicted_kl": "nats per example of a diagonal Fisher: ranks, is no loss",
}


@dataclass(frozen=True)
class Point:
    """One choice of weights. predicted_kl: per example and parent. losses: in the measure."""

    weights: Weights
    predicted_kl: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """asked: points per line. parents: names, all different. exact: whether `best` is the optimum
    over all weights, not only over the points. without_fisher: tensors that differ and that a
    parent's Fisher leaves out, for each parent. notes: on the predictions. plan_notes: on the merge
    itself, which tells them too.
    """

    asked: int
    parents: tuple[str, ...]
    measure: Measure
    points: tuple[Point, ...]
    best: Point
    exact: bool
    without_fisher: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    plan_notes: tuple[str, ...] = ()
    seconds: float = 0.0
    nbytes: int = 0


def measure_of(parents: Sequence[Parent]) -> tuple[Measure, tuple[float, ...]]:
    """In what losses are compared, and what turns each parent's nats per example into it.

    A calibrated loss beside one that is not would compare nothing: all, or none.
    """
    tokens = [parent.tokens_per_example for parent in parents]
    if not all(tokens):
        return "predicted_kl", (1.0,) * len(parents)
    per_token = [1.0 / count for count in tokens if count]
    calibrations = [parent.calibration for parent in parents]
    if any(one is None for one in calibrations):
        return "predicted_kl_per_token", tuple(per_token)
    return "predicted_loss", tuple(
        one * scale for one, scale in zip(calibrations, per_token, strict=True) if one is not None
    )


def names_of(parents: Sequence[Parent]) -> tuple[str, ...]:
    """A name for each parent; of the same path given twice the second is called so."""
    found: list[str] = []
    for parent in parents:
        earlier = sum(other.path == parent.path for other in parents[: len(found)])
        found.append(parent.path if not earlier else f"{parent.path} ({earlier + 1})")
    return tuple(found)


def to_json(sweep: Sweep) -> dict[str, Any]:
    """As `divergence.json` and `--json` hold it."""

    def by_parent(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(sweep.parents, values, strict=True))

    columns = range(len(sweep.parents))
    return {
        "points": sweep.asked,
        "measure": sweep.measure,
        "weights": [list(point.weights) for point in sweep.points],
        "predicted": by_parent([[p.losses[k] for p in sweep.points] for k in columns]),
        "predicted_kl": by_parent([[p.predicted_kl[k] for p in sweep.points] for k in columns]),
        "best": list(sweep.best.weights),
        "best_predicted": by_parent(sweep.best.losses),
        "best_of": "all weights" if sweep.exact else "these points",
        "without_fisher": by_parent([list(names) for names in sweep.without_fisher]),
    }
