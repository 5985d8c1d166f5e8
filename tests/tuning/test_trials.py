"""Which lambda a curve speaks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.errors import OptionError
from mergekit_cl.tuning.trials import Trial, best_trial, curve, within_budget

TRIALS = [
    Trial(0.0, {"old": 4.0, "new": 1.0}),
    Trial(10.0, {"old": 2.5, "new": 1.25}),
    Trial(100.0, {"old": 2.0, "new": 2.5}),
    Trial(1e9, {}, diverged=True),
]


def test_the_least_mean_loss_over_all_tasks_wins() -> None:
    assert best_trial(TRIALS) is TRIALS[1]


def test_of_equals_the_larger_wins() -> None:
    equal = [Trial(strength, {"a": 1.0}) for strength in (1.0, 100.0, 10.0)]
    assert best_trial(equal).strength == 100.0


def test_where_all_diverged_the_message_says_which() -> None:
    with pytest.raises(OptionError) as caught:
        best_trial([Trial(value, {}, diverged=True) for value in (1.0, 10.0)])
    assert caught.value.detail == "1, 10"


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0, 10)), min_size=1), st.floats(0, 10))
def test_a_budget_takes_the_smallest_lambda_that_keeps_it(
    pairs: list[tuple[float, float]], budget: float
) -> None:
    trials = [Trial(strength, {"a": 1.0}, loss) for strength, loss in pairs]
    kept = [strength for strength, loss in pairs if loss <= budget]
    if kept:
        assert within_budget(trials, budget).strength == min(kept)
    else:
        with pytest.raises(OptionError, match="budget"):
            within_budget(trials, budget)


def test_the_whole_curve_is_shown_with_what_diverged_and_what_was_chosen() -> None:
    assert curve(TRIALS, TRIALS[1]) == [
        "lambda 0: 2.5000 nats per token on average (old 4.0000, new 1.0000)",
        "lambda 10: 1.8750 nats per token on average (old 2.5000, new 1.2500) <- chosen",
        "lambda 100: 2.2500 nats per token on average (old 2.0000, new 2.5000)",
        "lambda 1e+09: diverged",
    ]


def test_a_trial_without_rows_to_be_judged_by_has_not_diverged() -> None:
    judged_by_budget = [Trial(1.0, {}, 0.5), Trial(10.0, {}, 0.25)]
    assert curve(judged_by_budget, within_budget(judged_by_budget, 0.3)) == [
        "lambda 1: earlier tasks are predicted to lose 0.5",
        "lambda 10: earlier tasks are predicted to lose 0.25 <- chosen",
    ]


def test_a_best_at_an_end_is_told() -> None:
    assert "should go on" in curve(TRIALS[:2], TRIALS[1])[-1]
    assert "does not help" in curve(TRIALS[:2], TRIALS[0])[-1]


def test_trials_are_kept_as_json() -> None:
    for trial in (*TRIALS, Trial(1.0, {"a": 2.0}, 0.5)):
        assert Trial.from_json(trial.to_json()) == trial
