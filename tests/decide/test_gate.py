"""The gate's decision: its rule, its laws, and its errors in simulation."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekit_cl.decide.gate import (
    Comparison,
    Decision,
    compare,
    decide,
    decide_by,
    power_of,
    rows_for_power,
)
from mergekit_cl.decide.pairing import Rows
from mergekit_cl.errors import MismatchError, NonFiniteError

MARGIN, ALPHA = 0.02, 0.05


def rows(nats: Any, tokens: Any, correct: Any = None) -> Rows:
    names = tuple(f"{k:06d}" for k in range(len(nats)))
    right = None if correct is None else np.asarray(correct, dtype=bool)
    return Rows(names, np.asarray(nats, float), np.asarray(tokens, np.int64), right)


def pair(draw: np.random.Generator, delta: float, noise: float, count: int) -> tuple[Rows, Rows]:
    """New and old losses that truly differ by `delta` nats per token, with noise over rows."""
    tokens = draw.integers(20, 200, count)
    old = tokens * draw.normal(3, 0.5, count)
    return rows(old + tokens * draw.normal(delta, noise, count), tokens), rows(old, tokens)


def example(delta: float = 0.0, noise: float = 0.1, count: int = 600, seed: int = 0) -> Any:
    return pair(np.random.default_rng(seed), delta, noise, count)


# The rule


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.001, 0.5), st.floats(0, 1))
def test_a_decision_follows_the_rule(
    lower: float, width: float, margin: float, power: float
) -> None:
    upper = lower + width
    expected: Decision = "inconclusive"
    if upper < margin:
        expected = "accept"
    elif lower > margin or power >= 0.8:
        expected = "reject"
    assert decide_by(lower, upper, margin, power) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["accept", "reject", "inconclusive"]), min_size=1))
def test_several_are_accepted_together_and_rejected_by_one(decisions: list[Decision]) -> None:
    found = decide(decisions)
    assert (found == "accept") == all(one == "accept" for one in decisions)
    assert (found == "reject") == any(one == "reject" for one in decisions)


def test_nothing_is_not_accepted() -> None:
    assert decide([]) == "inconclusive"


# One comparison


def test_the_numbers_are_those_of_the_rows() -> None:
    new, old = example(delta=0.01)
    found = compare(new, old, draws=500)
    whole = new.tokens.sum()
    assert (found.rows, found.tokens) == (600, whole)
    assert found.delta == pytest.approx((new.nats.sum() - old.nats.sum()) / whole)
    assert found.new_loss - found.old_loss == pytest.approx(found.delta)
    assert found.interval is not None
    assert found.interval[0] < found.delta < found.interval[1]
    assert found.mcnemar is None


def test_the_same_losses_are_accepted_for_certain() -> None:
    _, old = example()
    found = compare(old, old, draws=100)
    assert (found.delta, found.interval, found.power) == (0.0, (0.0, 0.0), 1.0)
    assert (found.decision, found.rows_needed) == ("accept", 500)


def test_what_is_far_worse_is_rejected_and_far_better_accepted() -> None:
    new, old = example(delta=0.3)
    assert compare(new, old, draws=500).decision == "reject"
    assert compare(old, new, draws=500).decision == "accept"


def test_few_noisy_rows_decide_nothing_and_tell_how_many_would() -> None:
    new, old = example(noise=1.0)
    found = compare(new, old, draws=500)
    assert found.decision == "inconclusive"
    assert found.power < 0.8
    assert found.rows_needed is not None
    assert found.rows_needed > 600


def test_fewer_rows_than_asked_decide_nothing_however_clear_they_are() -> None:
    new, old = example(delta=0.5, count=499)
    found = compare(new, old, draws=500)
    assert (found.decision, found.power, found.rows_needed) == ("inconclusive", 0.0, 500)
    assert compare(new, old, min_rows=499, draws=500).decision == "reject"
    assert compare(old, new, draws=500).decision == "inconclusive"


def test_one_row_has_no_interval() -> None:
    found = compare(rows([3.0], [2]), rows([1.0], [2]), min_rows=1)
    assert (found.delta, found.interval, found.decision) == (1.0, None, "inconclusive")
    assert (found.standard_error, found.rows_needed) == (None, None)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_the_order_of_rows_changes_nothing(seed: int) -> None:
    new, old = example(count=30)

    def shuffled(one: Rows, seed: int) -> Rows:
        order = np.random.default_rng(seed).permutation(len(one.ids))
        return Rows(tuple(one.ids[k] for k in order), one.nats[order], one.tokens[order])

    expected = compare(new, old, draws=50)
    assert compare(shuffled(new, seed), shuffled(old, seed + 1), draws=50) == expected


def test_a_classifier_is_compared_by_mcnemar_too() -> None:
    new, old = example(count=4)
    right = replace(new, correct=np.array([True, True, False, True]))
    wrong = replace(old, correct=np.array([False, False, True, True]))
    found = compare(right, wrong, draws=50).mcnemar
    assert found is not None
    assert (found.better, found.worse, found.p_value) == (2, 1, 1.0)


def test_what_does_not_compare_is_refused() -> None:
    new, old = example(count=5)
    with pytest.raises(MismatchError, match="different rows"):
        compare(new, replace(old, ids=("x", *old.ids[1:])))
    with pytest.raises(MismatchError, match="different tokens"):
        compare(new, replace(old, tokens=old.tokens + 1))
    twice = Rows(("a", "a"), np.ones(2), np.ones(2, np.int64))
    with pytest.raises(MismatchError, match="measured twice"):
        compare(twice, twice)
    with pytest.raises(MismatchError, match="no token"):
        compare(new, replace(old, tokens=old.tokens * 0))
    with pytest.raises(MismatchError, match="no rows"):
        compare(rows([], []), rows([], []))
    with pytest.raises(MismatchError, match="classifier"):
        compare(new, replace(old, correct=np.ones(5, bool)))
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="no number"):
            compare(new, replace(old, nats=old.nats + bad))


@pytest.mark.parametrize("option", [{"margin": 0.0}, {"alpha": 0.0}, {"alpha": 0.5}, {"draws": 0}])
def test_options_out_of_range_are_errors(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="margin"):
        compare(*example(count=5), **option)


# Power


def test_power_and_rows_agree() -> None:
    for count, error in [(500, 0.01), (2000, 0.004), (700, 0.03)]:
        width = 1.645 * error
        needed = rows_for_power(count, MARGIN, width, error)
        shrunk = (count / needed) ** 0.5
        assert power_of(MARGIN, width * shrunk, error * shrunk) == pytest.approx(0.8, abs=1e-3)


def simulate(delta: float, noise: float, times: int, count: int = 500) -> list[Comparison]:
    draw = np.random.default_rng(7)
    made = (pair(draw, delta, noise, count) for _ in range(times))
    return [compare(new, old, margin=MARGIN, alpha=ALPHA, draws=400) for new, old in made]


def share(found: list[Comparison], decision: Decision) -> float:
    return sum(one.decision == decision for one in found) / len(found)


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_power_is_the_share_of_equal_models_that_are_accepted(noise: float) -> None:
    found = simulate(0.0, noise, 200)
    predicted = float(np.mean([one.power for one in found]))
    # Three standard errors of a share of 200.
    assert share(found, "accept") == pytest.approx(predicted, abs=0.11)


def test_a_candidate_at_the_margin_is_accepted_as_often_as_alpha_says() -> None:
    found = simulate(MARGIN, 0.6, 400)
    assert share(found, "accept") <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 400) ** 0.5
    # The rule that most take instead: accept unless the candidate is significantly worse than 0.
    z = NormalDist().inv_cdf(1 - ALPHA)
    naive = [one.delta < z * (one.standard_error or 0) for one in found]
    assert sum(naive) / len(naive) > 0.75
    assert share(found, "inconclusive") > 0.8
