from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mergekit_cl.decide.ratio import ratio


def test_a_ratio_and_its_error_are_those_of_exact_fractions() -> None:
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 100, 50).astype(float)
    values = draw.normal(size=50) * weights
    x, w = [Fraction(v) for v in values], [Fraction(v) for v in weights]
    mean = sum(x) / sum(w)
    squares = sum((a - mean * b) ** 2 for a, b in zip(x, w, strict=True))
    error = float(Fraction(50, 49) * squares / sum(w) ** 2) ** 0.5
    assert ratio(values, weights) == pytest.approx((float(mean), error), rel=1e-13)


def test_one_row_has_no_error() -> None:
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, None)
