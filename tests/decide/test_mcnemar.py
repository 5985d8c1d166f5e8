from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.decide.mcnemar import mcnemar


def flags(better: int, worse: int, both: int = 3, none: int = 2) -> tuple[np.ndarray, np.ndarray]:
    new = [True] * better + [False] * worse + [True] * both + [False] * none
    old = [False] * better + [True] * worse + [True] * both + [False] * none
    return np.array(new, dtype=bool), np.array(old, dtype=bool)


def by_fractions(better: int, worse: int) -> float:
    n = better + worse
    tail = sum((Fraction(comb(n, k), 2**n) for k in range(min(better, worse) + 1)), Fraction(0))
    return float(min(Fraction(1), 2 * tail))


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_test_is_the_binomial_sum(better: int, worse: int) -> None:
    found = mcnemar(*flags(better, worse))
    assert (found.better, found.worse) == (better, worse)
    assert found.p_value == pytest.approx(by_fractions(better, worse), rel=1e-10)


def test_what_both_or_none_get_right_says_nothing() -> None:
    assert mcnemar(*flags(9, 2)) == mcnemar(*flags(9, 2, both=500, none=70))


def test_the_test_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for better, worse in [(0, 0), (1, 0), (12, 30), (510, 440), (40_000, 40_700)]:
        expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert mcnemar(*flags(better, worse)).p_value == pytest.approx(expected, rel=1e-7)
