from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.decide.task_matrix import Better, Interval, Scores, summarise, task_matrix
from mergekit_cl.errors import MismatchError

# After each of three tasks; before them; worked out by hand below.
ACCURACY = [[0.9, 0.5, 0.3], [0.7, 0.8, 0.4], [0.6, 0.85, 0.95]]
BEFORE = [0.1, 0.2, 0.25]


def accuracies(shares: list[list[float]], rows: int = 100) -> list[list[Scores | None]]:
    def scores(share: float) -> Scores:
        right = round(share * rows)
        return Scores(np.array([1.0] * right + [0.0] * (rows - right)), np.ones(rows))

    return [[scores(share) for share in row] for row in shares]


def test_the_metrics_of_a_matrix_worked_out_by_hand() -> None:
    found = summarise(ACCURACY, better="higher", before=BEFORE)
    assert found.average == pytest.approx((0.6 + 0.85 + 0.95) / 3)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.5 - 0.2) + (0.4 - 0.25)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first() -> None:
    better_later = [[0.5, 0, 0], [0.9, 0.8, 0], [0.6, 0.8, 0.7]]
    found = summarise(better_later, better="higher")
    assert found.forgetting == pytest.approx((0.9 - 0.6) / 2)
    assert found.backward_transfer == pytest.approx((0.6 - 0.5) / 2)


def test_rows_give_the_same_metrics_as_numbers() -> None:
    rows = task_matrix("abc", accuracies(ACCURACY), better="higher", before=accuracies([BEFORE])[0])
    plain = summarise(ACCURACY, better="higher", before=BEFORE)
    for name in ("average", "backward_transfer", "forward_transfer", "forgetting"):
        assert getattr(rows, name).value == pytest.approx(getattr(plain, name)), name
    assert [one.value for one in rows.forgetting_of] == pytest.approx([0.3, -0.05])
    assert [one and one.value for one in rows.entries[1]] == pytest.approx([0.7, 0.8, 0.4])


@given(st.integers(1, 5), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_losses_are_accuracies_with_the_other_sign(count: int, seed: int, with_rows: bool) -> None:
    draw = np.random.default_rng(seed)
    weights = [draw.integers(1, 30, size=40).astype(float) for _ in range(count)]
    values = draw.normal(size=(count + 1, count, 40))
    tables = [
        [[Scores(sign * values[i, j], weights[j]) for j in range(count)] for i in range(count + 1)]
        for sign in (1.0, -1.0)
    ]
    kinds: tuple[Better, Better] = ("higher", "lower")
    up, down = (
        task_matrix([*map(str, range(count))], table[:-1], better=better, before=table[-1])
        for table, better in zip(tables, kinds, strict=True)
    )
    assert up.backward_transfer == down.backward_transfer
    assert up.forward_transfer == down.forward_transfer
    assert up.forgetting == down.forgetting
    assert up.average is not None
    assert down.average is not None
    assert up.average.value == pytest.approx(-down.average.value)


def test_what_was_not_measured_or_is_undefined_is_none() -> None:
    one = task_matrix("abc", accuracies([[0.5, 0.5, 0.5]]), better="higher")
    assert one.average is not None
    assert (one.backward_transfer, one.forward_transfer, one.forgetting) == (None, None, None)
    lower: list[list[Scores | None]] = accuracies(ACCURACY)
    lower[0][1] = lower[0][2] = lower[1][2] = None
    found = task_matrix("abc", lower, better="higher", before=accuracies([BEFORE])[0])
    assert found.forward_transfer is None
    assert found.entries[0][1] is None
    assert found.forgetting is not None
    assert found.forgetting.value == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)
    nothing = task_matrix("abc", [], better="lower")
    assert (nothing.average, nothing.forgetting, nothing.entries) == (None, None, ())
    assert json.loads(json.dumps(found.to_json()))["entries"][0][1] is None


def test_only_tasks_learned_so_far_count() -> None:
    half = task_matrix("abc", accuracies(ACCURACY[:2]), better="higher")
    assert half.average is not None
    assert half.average.value == pytest.approx((0.7 + 0.8) / 2)
    assert len(half.forgetting_of) == 1


def test_nine_in_ten_intervals_hold_the_true_value() -> None:
    draw = np.random.default_rng(0)
    truth = np.array([[1.0, 2.0, 3.0], [1.6, 1.1, 2.5], [1.8, 1.4, 1.2], [3.0, 3.0, 3.0]])
    exact = summarise(truth[:3].tolist(), better="lower", before=truth[3].tolist())
    names = ("average", "backward_transfer", "forward_transfer", "forgetting")
    repeats, held = 400, dict.fromkeys((*names, "entry"), 0)
    for _ in range(repeats):
        table: list[list[Scores | None]] = [[None] * 3 for _ in range(4)]
        for j in range(3):
            tokens = draw.integers(5, 50, size=200).astype(float)
            common = draw.normal(size=200)  # a hard row is hard for every model
            for i in range(4):
                noise = 0.5 * (common + 0.3 * draw.normal(size=200))
                table[i][j] = Scores((truth[i, j] + noise) * tokens, tokens)
        found = task_matrix("abc", table[:3], better="lower", before=table[3], alpha=0.1)
        for name in names:
            interval: Interval = getattr(found, name)
            assert interval.lower is not None
            assert interval.upper is not None
            held[name] += interval.lower <= getattr(exact, name) <= interval.upper
        entry = found.entries[1][2]
        assert entry is not None
        assert entry.lower is not None
        assert entry.upper is not None
        held["entry"] += entry.lower <= truth[1, 2] <= entry.upper
    # Four standard errors of 90 % in 400.
    assert all(abs(count / repeats - 0.9) < 0.06 for count in held.values()), held


def test_gains_are_paired_row_by_row() -> None:
    draw = np.random.default_rng(0)
    hard = 10 * draw.normal(size=500)
    ones = np.ones(500)
    small = 0.01 * draw.normal(size=500)
    table: list[list[Scores | None]] = [
        [Scores(hard, ones), Scores(hard, ones)],
        [Scores(hard + 0.1 + small, ones), Scores(hard, ones)],
    ]
    found = task_matrix("ab", table, better="lower").forgetting
    assert found is not None
    assert found.lower is not None
    assert found.upper is not None
    assert found.upper - found.lower < 0.01
    assert found.lower < found.value < found.upper


def test_an_accuracy_of_one_has_an_interval_below_it() -> None:
    # Wilson's lower end for 100 of 100 is n / (n + z^2).
    found = task_matrix("a", accuracies([[1.0]]), better="higher").entries[0][0]
    assert found == Interval(1.0, pytest.approx(100 / (100 + 1.959964**2)), 1.0)


def test_a_single_row_has_no_interval() -> None:
    one = Scores(np.array([3.5]), np.array([2.0]))
    found = task_matrix("a", [[one]], better="lower")
    assert found.entries[0][0] == found.average == Interval(1.75)


def test_scores_that_do_not_belong_together_are_refused() -> None:
    table = accuracies(ACCURACY)
    with pytest.raises(MismatchError, match="other tasks"):
        task_matrix("ab", table, better="higher")
    shorter = accuracies(ACCURACY, rows=50)
    with pytest.raises(MismatchError, match="different rows") as caught:
        task_matrix("abc", [*table[:2], shorter[2]], better="higher")
    assert "a: " in str(caught.value.detail)
    table[2][0] = None
    with pytest.raises(MismatchError, match="has no score") as caught:
        task_matrix("abc", table, better="higher")
    assert caught.value.detail == "after c: a"
