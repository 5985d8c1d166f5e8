"""Diagonal Fisher information: estimating it, storing it beside a checkpoint, reading it back.

Names are resolved on first use, so that `import fisher` alone loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fisher.batch import IGNORE, UNKNOWN, Batch
    from fisher.errors import BatchError, EstimatorError, FisherError, GraphError, StateError

_HOMES = {
    "Batch": "fisher.batch",
    "IGNORE": "fisher.batch",
    "UNKNOWN": "fisher.batch",
    "BatchError": "fisher.errors",
    "EstimatorError": "fisher.errors",
    "FisherError": "fisher.errors",
    "GraphError": "fisher.errors",
    "StateError": "fisher.errors",
}

__all__ = [
    "IGNORE",
    "UNKNOWN",
    "Batch",
    "BatchError",
    "EstimatorError",
    "FisherError",
    "GraphError",
    "StateError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
