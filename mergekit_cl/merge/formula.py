"""Formulas as plain values, for kernels that are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_cl.merge.fisher import Scale

COMPILED_DTYPES = frozenset({"BF16", "F16", "F32"})
"""Stored dtypes that compiled kernels read and write, as safetensors spells them."""


@dataclass(frozen=True)
class Differences:
    """anchor - sum_k w_k (anchor - x_k): (operand, weight) of every term; anchor: an operand."""

    anchor: int
    terms: tuple[tuple[int, float], ...]

    @property
    def operands(self) -> frozenset[int]:
        """Those it looks at."""
        return frozenset({self.anchor, *(k for k, _ in self.terms)})


@dataclass(frozen=True)
class Updates:
    """Operand 0 moved towards one of the next after the other; as many as there are decays."""

    decays: tuple[float, ...]

    @property
    def operands(self) -> frozenset[int]:
        """Those it looks at."""
        return frozenset(range(len(self.decays) + 1))


@dataclass(frozen=True)
class FisherMean:
    """The Fisher-weighted mean of the first K operands, their Fishers being the next K.

    scales: of each input; all weights are above 0, and the fallback is linear.
    """

    scales: tuple[Scale, ...]

    @property
    def operands(self) -> frozenset[int]:
        """Those it looks at."""
        return frozenset(range(2 * len(self.scales)))


Formula = Differences | Updates | FisherMean


def mean_of(weights: Sequence[float]) -> Differences:
    """The mean of the first operands, one for each weight, as merge/linear.py anchors it."""
    anchor = max(range(len(weights)), key=lambda k: (weights[k], k))
    return Differences(anchor, tuple((k, w) for k, w in enumerate(weights) if k != anchor))
