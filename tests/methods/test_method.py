"""Weights of a merge: one per input, summing to one unless told otherwise."""

from __future__ import annotations

import math

import pytest

from mergekit_cl.errors import OptionError
from mergekit_cl.methods.method import resolve_weights


def test_without_weights_all_inputs_weigh_the_same() -> None:
    assert resolve_weights(None, 4, normalize=True) == (0.25,) * 4


def test_weights_are_normalised_in_float64() -> None:
    found = resolve_weights([1, 2, 4], 3, normalize=True)
    assert found == (1 / 7, 2 / 7, 4 / 7)


def test_weights_that_are_not_normalised_are_taken_as_given() -> None:
    assert resolve_weights([1.0, 2.0], 2, normalize=False) == (1.0, 2.0)
    assert resolve_weights([1.0, -1.0], 2, normalize=False) == (1.0, -1.0)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_weights_than_inputs_is_refused(weights: list[float]) -> None:
    with pytest.raises(OptionError, match="2 inputs need 2 weights"):
        resolve_weights(weights, 2, normalize=True)


@pytest.mark.parametrize(
    "weights", [[0.0, 0.0], [1.0, -1.0], [math.nan, 1.0], [math.inf, 1.0], [1e308, 1e308]]
)
def test_weights_without_a_finite_sum_other_than_zero_are_refused(weights: list[float]) -> None:
    with pytest.raises(OptionError) as caught:
        resolve_weights(weights, 2, normalize=True)
    assert caught.value.exit_code == 2


def test_a_plain_sum_without_weights_is_refused() -> None:
    with pytest.raises(OptionError):
        resolve_weights(None, 2, normalize=False)


@pytest.mark.parametrize("weights", [[math.nan, 1.0], [math.inf, 1.0]])
def test_a_plain_sum_of_weights_that_are_not_finite_is_refused(weights: list[float]) -> None:
    with pytest.raises(OptionError):
        resolve_weights(weights, 2, normalize=False)
