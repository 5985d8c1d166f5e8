"""Formulas of two inputs as plain values, for a kernel that is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from mergekit_cl.merge.fisher import Scale


@dataclass(frozen=True)
class PairMean:
    """The mean of operands 0 and 1; weights sum to 1."""

    weights: tuple[float, float]


@dataclass(frozen=True)
class PairFisher:
    """The Fisher-weighted mean of operands 0 and 1, their Fishers being operands 2 and 3.

    Both weights are above 0, and the fallback is linear.
    """

    scales: tuple[Scale, Scale]


Formula = PairMean | PairFisher

COMPILED_DTYPES = frozenset({"BF16", "F32"})
"""Stored dtypes that compiled kernels read and write, as safetensors spells them."""

WIDENED = COMPILED_DTYPES | {"F16"}
"""Those that compiled code widens to float64 and rounds it to."""
