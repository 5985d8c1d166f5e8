"""Thresholds beyond which a merge is lossy: for the model, for layers and tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from mergekit_cl.errors import OptionError

LOSSY_BELOW = ("survival", "cosine")
OF_THE_MODEL = ("predicted_loss", "loss_rise", "missing")
"""Metrics that a whole model has, and no layer or tensor."""
LOSSY_ABOVE = (
    *OF_THE_MODEL,
    "rel_l2",
    "max_abs",
    "changed",
    "sign_conflict",
    "rounding_error",
    "predicted_kl",
    "fallback",
)
METRICS = LOSSY_BELOW + LOSSY_ABOVE
PER_TENSOR = tuple(metric for metric in METRICS if metric not in OF_THE_MODEL)
SECTIONS = ("model", "layers", "tensors", "baseline")
TOLERANCE = 0.05
Thresholds = dict[str, float]


@dataclass(frozen=True)
class Policy:
    """model: metric -> threshold. layers, tensors: name pattern -> the same.

    `survival` and `cosine` are lossy below their threshold, every other metric above it. A metric
    that is undefined breaks no threshold. tolerance: the share by which a metric may be worse than
    in a baseline.
    """

    model: Thresholds
    tensors: dict[str, Thresholds] = field(default_factory=dict)
    layers: dict[str, Thresholds] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def for_tensor(self, name: str) -> Thresholds:
        """The thresholds of every pattern a tensor's name matches; later ones win."""
        return _matching(self.tensors, name)

    def for_layer(self, name: str) -> Thresholds:
        """The same for a layer."""
        return _matching(self.layers, name)

    def to_json(self) -> dict[str, Any]:
        """As recorded in a manifest."""
        return {
            "model": self.model,
            "layers": self.layers,
            "tensors": self.tensors,
            "baseline": {"tolerance": self.tolerance},
        }


DEFAULT = Policy({"survival": 0.5, "predicted_loss": 0.02, "loss_rise": 0.02, "missing": 0.0})
"""predicted_loss, loss_rise: nats per token; known only where a parent's sidecar carries a
calibration, or where data are given."""


def is_broken(metric: str, value: float | None, threshold: float) -> bool:
    """Whether a value lies on the lossy side of its threshold."""
    if value is None:
        return False
    return value < threshold if metric in LOSSY_BELOW else value > threshold


def parse_policy(content: Mapping[str, Any], where: str) -> Policy:
    """A policy from the tables of its file.

    Raises OptionError for what is no threshold, naming the nearest key there is.
    """
    _check_keys(content, SECTIONS, where)
    baseline = content.get("baseline", {})
    if not isinstance(baseline, Mapping):
        raise OptionError("a policy's [baseline] holds a tolerance", detail=where)
    _check_keys(baseline, ("tolerance",), f"{where}: [baseline]")
    tolerance = _number("tolerance", baseline.get("tolerance", TOLERANCE), f"{where}: [baseline]")
    if not 0 <= tolerance < float("inf"):
        raise OptionError(
            "a tolerance is a share of 0 or more", detail=f"{where}: tolerance = {tolerance}"
        )
    return Policy(
        _thresholds(content.get("model", {}), f"{where}: [model]"),
        _by_pattern(content, "tensors", where),
        _by_pattern(content, "layers", where),
        tolerance,
    )


def _matching(patterns: Mapping[str, Thresholds], name: str) -> Thresholds:
    found: Thresholds = {}
    for pattern, thresholds in patterns.items():
        if fnmatchcase(name, pattern):
            found.update(thresholds)
    return found


def _by_pattern(content: Mapping[str, Any], section: str, where: str) -> dict[str, Thresholds]:
    patterns = content.get(section, {})
    if not isinstance(patterns, Mapping):
        raise OptionError(f"a policy's [{section}] maps patterns to thresholds", detail=where)
    return {
        pattern: _thresholds(limits, f'{where}: [{section}."{pattern}"]', PER_TENSOR)
        for pattern, limits in patterns.items()
    }


def _thresholds(content: Any, where: str, known: tuple[str, ...] = METRICS) -> Thresholds:
    if not isinstance(content, Mapping):
        raise OptionError("a policy's section maps metrics to numbers", detail=where)
    _check_keys(content, known, where)
    return {metric: _number(metric, value, where) for metric, value in content.items()}


def _number(key: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise OptionError("a threshold is a number", detail=f"{where}: {key} = {value!r}")
    return float(value)


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.4)
            raise OptionError(
                "a policy has an unknown key",
                detail=f"{where}: {key}",
                hint=near[0] if near else f"one of {', '.join(known)}",
            )
