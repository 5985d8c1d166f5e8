"""Thresholds beyond which a merge is lossy, for the model and for tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from mergekit_cl.errors import OptionError

LOSSY_BELOW = ("survival", "cosine")
LOSSY_ABOVE = (
    "predicted_loss",
    "rel_l2",
    "max_abs",
    "changed",
    "rounding_error",
    "predicted_kl",
    "fallback",
)
METRICS = LOSSY_BELOW + LOSSY_ABOVE
SECTIONS = ("model", "tensors")
Thresholds = dict[str, float]


@dataclass(frozen=True)
class Policy:
    """model: metric -> threshold for the whole model. tensors: name pattern -> the same.

    `survival` and `cosine` are lossy below their threshold, every other metric above it. A metric
    that is undefined breaks no threshold.
    """

    model: Thresholds
    tensors: dict[str, Thresholds] = field(default_factory=dict)

    def for_tensor(self, name: str) -> Thresholds:
        """The thresholds of every pattern a tensor's name matches, later ones first."""
        found: Thresholds = {}
        for pattern, thresholds in self.tensors.items():
            if fnmatchcase(name, pattern):
                found.update(thresholds)
        return found

    def to_json(self) -> dict[str, Any]:
        """As recorded in a manifest."""
        return {"model": self.model, "tensors": self.tensors}


DEFAULT = Policy({"survival": 0.5, "predicted_loss": 0.02})
"""predicted_loss: nats per token; known only for a parent whose sidecar carries a calibration."""


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
    tensors = content.get("tensors", {})
    if not isinstance(tensors, Mapping):
        raise OptionError("a policy's [tensors] maps patterns to thresholds", detail=where)
    return Policy(
        _thresholds(content.get("model", {}), f"{where}: [model]"),
        {
            pattern: _thresholds(limits, f'{where}: [tensors."{pattern}"]', LOSSY_PER_TENSOR)
            for pattern, limits in tensors.items()
        },
    )


LOSSY_PER_TENSOR = tuple(metric for metric in METRICS if metric != "predicted_loss")


def _thresholds(content: Any, where: str, known: tuple[str, ...] = METRICS) -> Thresholds:
    if not isinstance(content, Mapping):
        raise OptionError("a policy's section maps metrics to numbers", detail=where)
    _check_keys(content, known, where)
    for metric, value in content.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise OptionError("a threshold is a number", detail=f"{where}: {metric} = {value!r}")
    return {metric: float(value) for metric, value in content.items()}


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.4)
            raise OptionError(
                "a policy has an unknown key",
                detail=f"{where}: {key}",
                hint=near[0] if near else f"one of {', '.join(known)}",
            )
