from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.decide.spending import spend


@given(st.floats(1e-6, 0.5), st.integers(1, 2000))
def test_any_number_of_looks_spends_less_than_alpha(alpha: float, looks: int) -> None:
    spent = sum((Fraction(spend(alpha, look)) for look in range(1, looks + 1)), Fraction(0))
    assert spent < Fraction(alpha)
    assert float(spent) == pytest.approx(alpha * looks / (looks + 1))


def test_the_first_look_has_half_and_later_ones_less() -> None:
    assert spend(0.05, 1) == 0.025
    assert all(spend(0.05, k + 1) < spend(0.05, k) for k in range(1, 100))


def test_looks_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        spend(0.05, 0)
