"""What was asked of `clmerge fisher`, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_cl.plan import Selection


@dataclass(frozen=True)
class FisherRequest:
    """A model, rows and how to estimate; dtypes in safetensors' spelling.

    target: None for the model's own folder. estimator, batch_size: None chooses by model and data.
    base: the model to calibrate against. target_se: relative standard error of the trace at which
    to stop.
    """

    model: str
    data: tuple[str, ...]
    target: Path | None = None
    text_field: str | None = None
    label_field: str | None = None
    adapter: Path | None = None
    base: str | None = None
    estimator: str | None = None
    optimizer: Path | None = None
    draws: int = 1
    samples: int = 256
    target_se: float | None = None
    max_length: int = 512
    batch_size: int | None = None
    seed: int = 0
    store_dtype: str = "BF16"
    compute_dtype: str = "F32"
    device: str = "auto"
    threads: int | None = None
    memory: int | None = None
    shard_size: int = 5 * 10**9
    selection: Selection = field(default_factory=Selection)
    stream_layers: bool = False
    force: bool = False
    restart: bool = False


@dataclass(frozen=True)
class FisherOutcome:
    """A sidecar on the disk; state: "published" or "up to date". metadata: docs/sidecar.md."""

    target: Path
    state: str
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float
    nbytes: int
