"""Losses of several models on the same suites: what a gate decides by, measured or stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Losses(Protocol):
    """What a model did on rows: `training.loss.RowLosses` is one, `decide.pairing.Rows` another."""

    @property
    def ids(self) -> Sequence[str]:
        """One per row."""

    @property
    def nats(self) -> Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]:
        """Summed over each row."""

    @property
    def tokens(self) -> Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]:
        """Positions that carry a loss."""

    @property
    def correct(self) -> Sequence[bool] | np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Of a classifier, whether it was right."""


@dataclass(frozen=True)
class Model:
    """path: as people call it. digest: of its weights."""

    path: str
    digest: str


@dataclass(frozen=True)
class Measured:
    """models: by role ("candidate", "reference", perhaps "anchor"). suites: {name: digest of its
    rows}. losses: {role: {suite: losses}}. max_length: tokens at which rows were cut."""

    models: Mapping[str, Model]
    suites: Mapping[str, str]
    losses: Mapping[str, Mapping[str, Losses]]
    max_length: int
    notes: tuple[str, ...] = ()
