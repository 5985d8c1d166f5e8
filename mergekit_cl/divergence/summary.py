"""Divergence of one merge: per tensor, per layer, for the model, against every parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_cl.decide.policy import DEFAULT, Policy
from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.divergence.metrics import NAMES, metrics
from mergekit_cl.divergence.sums import Sums, total
from mergekit_cl.divergence.verdict import ParentMetrics, TensorMetrics, Verdict, judge

FORMAT = "clmerge.divergence/1"
_SMALLER_IS_WORSE = ("cosine", "survival")
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Parent:
    """One model the merge is compared with.

    tokens_per_example, calibration: of its sidecar, where it has one and they are known. in_nats:
    whether that Fisher is one whose quadratic form is a divergence (`mc` and `exact` only).
    """

    path: str
    tokens_per_example: float | None = None
    calibration: float | None = None
    in_nats: bool = True


@dataclass(frozen=True)
class Covered:
    """What of a model its parent's Fisher speaks of.

    share: of the compared entries, None where there is no Fisher. without: tensors that it leaves
    out although it speaks of others.
    """

    share: float | None
    without: tuple[str, ...]


@dataclass(frozen=True)
class Divergence:
    """Everything `divergence.json` says; sweep: what the weights were chosen by, if they were."""

    parents: tuple[Parent, ...]
    model: tuple[ParentMetrics, ...]
    layers: tuple[TensorMetrics, ...]
    tensors: tuple[TensorMetrics, ...]
    verdict: Verdict
    covered: tuple[Covered, ...]
    sweep: Mapping[str, Any] | None = None


def summarise(
    sums: Mapping[str, Sequence[Sums | None]],
    parents: Sequence[Parent],
    *,
    policy: Policy = DEFAULT,
    carried: bool = False,
) -> Divergence:
    """Turn the sums of every tensor, one per parent that has it, into metrics and a verdict.

    policy: what counts as lossy. carried: whether the residuals of rounding are kept.
    """
    model, layer_rows, tensor_rows, covered = [], [], [], []
    layer = {name: layer_of(name) for name in sums}
    for k, parent in enumerate(parents):
        known = {
            name: one for name, per_parent in sums.items() if (one := per_parent[k]) is not None
        }
        layers: dict[str, list[Sums]] = {}
        for name, one in known.items():
            layers.setdefault(layer[name], []).append(one)
        summed = total(list(known.values()))
        covered.append(_covered(summed, known))
        whole = _metrics(summed, parent)
        model.append(ParentMetrics(parent.path, whole, _predicted_loss(whole, parent)))
        tensor_rows += [
            TensorMetrics(name, parent.path, _metrics(one, parent)) for name, one in known.items()
        ]
        layer_rows += [
            TensorMetrics(name, parent.path, _metrics(total(parts), parent))
            for name, parts in layers.items()
        ]
    return Divergence(
        tuple(parents),
        tuple(model),
        tuple(layer_rows),
        tuple(tensor_rows),
        judge(model, tensor_rows, layer_rows, policy=policy, carried=carried),
        tuple(covered),
    )


def worst_layers(divergence: Divergence, metric: str, count: int) -> list[TensorMetrics]:
    """The layers that differ most from any parent, each once, by its worst parent."""
    return worst(divergence.layers, metric, count)


def worst(rows: Sequence[TensorMetrics], metric: str, count: int) -> list[TensorMetrics]:
    """The layers or tensors of rows for which a metric is worst, each once, by its worst parent."""
    sign = 1.0 if metric in _SMALLER_IS_WORSE else -1.0
    known = [(row, value) for row in rows if (value := row.metrics[metric]) is not None]
    found: dict[str, TensorMetrics] = {}
    for row, _ in sorted(known, key=lambda pair: sign * pair[1]):
        found.setdefault(row.name, row)
    return list(found.values())[:count]


def to_json(divergence: Divergence) -> dict[str, Any]:
    """The document of format "clmerge.divergence/1"; `model` holds each metric's worst parent."""
    swept = {} if divergence.sweep is None else {"sweep": dict(divergence.sweep)}
    return {
        **swept,
        "format": FORMAT,
        "parents": [parent.path for parent in divergence.parents],
        **model_to_json(divergence),
        "layers": [
            {"layer": row.name, "parent": row.parent, **row.metrics} for row in divergence.layers
        ],
        "tensors": [
            {"name": row.name, "parent": row.parent, **row.metrics} for row in divergence.tensors
        ],
        "verdict": verdict_to_json(divergence),
    }


def model_to_json(divergence: Divergence) -> dict[str, Any]:
    """What that document says of the model as a whole."""
    return {
        "model": {
            **{name: _worst(divergence.model, name) for name in NAMES},
            "predicted_loss": max(
                (one.predicted_loss for one in divergence.model if one.predicted_loss is not None),
                default=None,
            ),
        },
        "model_by_parent": [
            {
                "parent": one.parent,
                **one.metrics,
                "predicted_loss": one.predicted_loss,
                "fisher_share": covered.share,
                "without_fisher": list(covered.without),
            }
            for one, covered in zip(divergence.model, divergence.covered, strict=True)
        ],
    }


def verdict_to_json(divergence: Divergence) -> dict[str, Any]:
    """Its verdict, with the layers that differ most."""
    return {
        "lossy": divergence.verdict.lossy,
        "reasons": list(divergence.verdict.reasons),
        "advice": list(divergence.verdict.advice),
        "worst": [
            {"layer": row.name, "parent": row.parent, "rel_l2": row.metrics["rel_l2"]}
            for row in worst_layers(divergence, "rel_l2", 3)
        ],
    }


def _covered(summed: Sums, tensors: Mapping[str, Sums]) -> Covered:
    if summed.fisher_square is None or not summed.count:
        return Covered(None, ())
    without = tuple(n for n, one in tensors.items() if one.count and one.fisher_gap[0])
    return Covered(1 - summed.fisher_gap[0] / summed.count, without)


def _worst(model: Sequence[ParentMetrics], name: str) -> float | None:
    values = [value for one in model if (value := one.metrics[name]) is not None]
    if not values:
        return None
    return min(values) if name in _SMALLER_IS_WORSE else max(values)


def _predicted_loss(whole: Metrics, parent: Parent) -> float | None:
    predicted = whole["predicted_kl"]
    if predicted is None or parent.calibration is None or not parent.tokens_per_example:
        return None
    return parent.calibration * predicted / parent.tokens_per_example


def _metrics(sums: Sums, parent: Parent) -> Metrics:
    found = metrics(sums)
    return found if parent.in_nats else {**found, "predicted_kl": None}
