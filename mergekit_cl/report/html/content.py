"""What the page says, as one JSON value: columns of numbers, names made harmless to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekit_cl.comparing.report import Report, document
from mergekit_cl.decide.policy import LOSSY_BELOW, Policy, is_broken
from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.divergence.metrics import NAMES
from mergekit_cl.divergence.summary import Divergence, model_to_json, verdict_to_json
from mergekit_cl.divergence.verdict import TensorMetrics, broken
from mergekit_cl.repeating import command_again
from mergekit_cl.report.html.layout import heading, kind_of, natural
from mergekit_cl.report.text import shown
from mergekit_cl.sweep.result import UNITS

DIGITS = ".6g"
"""How a number is given on the page: to six significant digits; divergence.json has all."""
Described = Mapping[str, tuple[str, Sequence[int]]]


def merge_content(
    divergence: Divergence, manifest: Mapping[str, Any], policy: Policy, *, carried: bool
) -> dict[str, Any]:
    """The page of a merge: what inputs and options decide, so neither time nor place of output."""
    described = {n: (t["dtype"], t["shape"]) for n, t in manifest["tensors"].items()}
    parents = divergence.parents
    found = broken(
        divergence.model, divergence.tensors, divergence.layers, policy=policy, carried=carried
    )
    findings = [{"name": one.name, **vars(one)} for one in found]
    kept = ("command", "options", "inputs", "versions")
    return {
        "title": f"{manifest['command']}: {heading([parent.path for parent in parents])}",
        "judged": True,
        "carried": carried,
        "findings": findings,
        "known": [],
        "policy": _policy(divergence, policy),
        "provenance": {
            **{key: manifest[key] for key in kept},
            "again": command_again(manifest),
            "weights_digest": manifest["outputs"][0]["weights_digest"],
        },
        **_numbers(divergence, described),
    }


def comparison_content(report: Report, *, judged: bool) -> dict[str, Any]:
    """The page of a comparison; judged: with verdict and policy."""
    said = document(report)
    against = heading([parent.path for parent in report.divergence.parents])
    kept = ("merged", "findings", "known", "baseline", "measured", "notes", "overlap")
    return {
        "title": f"{report.merged} against {against}",
        "judged": judged,
        "carried": False,
        "policy": _policy(report.divergence, report.policy),
        "provenance": None,
        **{key: said[key] for key in kept},
        **_numbers(report.divergence, report.described),
    }


def page_value(content: Mapping[str, Any]) -> Any:
    """The content with every string visible and every number short."""
    return _shortened(content)


def update_size(metrics: Mapping[str, float | None]) -> float | None:
    """The root mean square of a tensor's update over that of its weights.

    Of the exact update e + (d - e) where the merge knows it: with survival s = <d, e> / <d, d> and
    rounding error r = ||e - d|| / ||d||, ||e||^2 / ||d||^2 is r^2 + 2 s - 1. Else of what was
    stored. None where rounding left nothing to derive it from.
    """
    stored, survival, error = (metrics[n] for n in ("rel_l2", "survival", "rounding_error"))
    if stored is None or survival is None or error is None:
        return stored
    left = error * error + 2 * survival - 1
    return stored / math.sqrt(left) if left > 1e-9 else None


def _numbers(divergence: Divergence, described: Described) -> dict[str, Any]:
    sweep = divergence.sweep
    paths = [parent.path for parent in divergence.parents]
    names = list(dict.fromkeys(row.name for row in divergence.tensors))
    layer = [layer_of(name) for name in names]
    kind = [kind_of(name) for name in names]
    layers = sorted(set(layer), key=natural)
    kinds = sorted(set(kind), key=natural)
    dtypes = sorted({one[0] for one in described.values()})
    layer_at = {name: k for k, name in enumerate(layers)}
    kind_at = {name: k for k, name in enumerate(kinds)}
    dtype_at = {dtype: k for k, dtype in enumerate(dtypes)}
    tensor_rows = _by_parent(divergence.tensors, paths)
    sizes = [
        [None if (row := rows.get(name)) is None else update_size(row) for name in names]
        for rows in tensor_rows
    ]
    return {
        "parents": paths,
        "verdict": verdict_to_json(divergence),
        "model": model_to_json(divergence)["model_by_parent"],
        "sweep": None if sweep is None else dict(sweep),
        "sweep_unit": None if sweep is None else UNITS[sweep["measure"]],
        "smaller_is_worse": list(LOSSY_BELOW),
        "kinds": kinds,
        "dtypes": dtypes,
        "layers": {
            "names": layers,
            "values": _columns(_by_parent(divergence.layers, paths), layers),
        },
        "tensors": {
            "names": names,
            "layer": [layer_at[name] for name in layer],
            "kind": [kind_at[name] for name in kind],
            "dtype": [dtype_at[described[n][0]] if n in described else None for n in names],
            "shape": [list(described[n][1]) if n in described else None for n in names],
            "values": _columns(tensor_rows, names),
            "update_size": sizes,
        },
        "exact_updates": any(row.metrics["survival"] is not None for row in divergence.tensors),
    }


def _by_parent(
    rows: Iterable[TensorMetrics], paths: Sequence[str]
) -> list[dict[str, dict[str, float | None]]]:
    """Metrics by name for each parent, also where one path stands for two of them."""
    found: list[dict[str, dict[str, float | None]]] = [{} for _ in paths]
    places: dict[str, list[int]] = {}
    for k, path in enumerate(paths):
        places.setdefault(path, []).append(k)
    for row in rows:
        k = next(k for k in places[row.parent] if row.name not in found[k])
        found[k][row.name] = row.metrics
    return found


def _columns(
    by_parent: Sequence[Mapping[str, Mapping[str, float | None]]], names: Sequence[str]
) -> dict[str, list[list[float | None]]]:
    """{metric: [parent][name]}, of the metrics that anything has."""
    empty: dict[str, float | None] = {}
    by_parent_and_name = [[rows.get(name, empty) for name in names] for rows in by_parent]
    columns = {
        metric: [[row.get(metric) for row in rows] for rows in by_parent_and_name]
        for metric in NAMES
    }
    return {
        metric: values
        for metric, values in columns.items()
        if any(value is not None for parent in values for value in parent)
    }


def _policy(divergence: Divergence, policy: Policy) -> dict[str, Any]:
    """Thresholds, and for the model what each parent's value comes to."""
    rows = []
    for metric, limit in policy.model.items():
        values = [one.values[metric] for one in divergence.model]
        rows.append(
            {
                "metric": metric,
                "threshold": limit,
                "below": metric in LOSSY_BELOW,
                "values": values,
                "broken": [is_broken(metric, value, limit) for value in values],
            }
        )
    return {"model": rows, "layers": policy.layers, "tensors": policy.tensors}


def _shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(format(value, DIGITS))
    if value is None or isinstance(value, int):
        return value  # first: there are many, and asking whether one is a mapping takes long
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {shown(key): _shortened(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(one) for one in value]
    return value
