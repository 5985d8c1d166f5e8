"""Diagonal Fisher information: estimating it, storing it beside a checkpoint, reading it back.

Names are resolved on first use, so that `import fisher` alone loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fisher.accumulator import Accumulator, Estimate
    from fisher.batch import IGNORE, UNKNOWN, Batch
    from fisher.errors import BatchError, EstimatorError, FisherError, GraphError, StateError
    from fisher.estimation import estimate
    from fisher.sidecar import SidecarError, load, save

_HOMES = {
    "Accumulator": "fisher.accumulator",
    "Estimate": "fisher.accumulator",
    "Batch": "fisher.batch",
    "IGNORE": "fisher.batch",
    "UNKNOWN": "fisher.batch",
    "BatchError": "fisher.errors",
    "EstimatorError": "fisher.errors",
    "FisherError": "fisher.errors",
    "GraphError": "fisher.errors",
    "StateError": "fisher.errors",
    "estimate": "fisher.estimation",
    "SidecarError": "fisher.sidecar",
    "load": "fisher.sidecar",
    "save": "fisher.sidecar",
}

__all__ = [
    "IGNORE",
    "UNKNOWN",
    "Accumulator",
    "Batch",
    "BatchError",
    "Estimate",
    "EstimatorError",
    "FisherError",
    "GraphError",
    "SidecarError",
    "StateError",
    "estimate",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
