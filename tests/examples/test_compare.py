import math
from statistics import stdev

import numpy as np
import pytest

from examples.compare import Difference, Scores, against, difference, mean_difference
from examples.tables import NATS, RIGHT, summary, table


def scores(*sums: float, units: tuple[int, ...] | None = None) -> Scores:
    return Scores(sums, units or (1,) * len(sums))


def test_rows_of_one_unit_have_the_textbook_standard_error_of_a_paired_mean() -> None:
    old, new = scores(1, 0, 1, 0, 0), scores(1, 1, 1, 0, 1)
    gains = [0.0, 1.0, 0.0, 0.0, 1.0]
    found = difference(new, old)
    assert found.value == pytest.approx(0.4)
    assert found.error == pytest.approx(stdev(gains) / math.sqrt(5))


def test_the_standard_error_of_a_difference_per_token_is_what_resampling_rows_gives() -> None:
    random = np.random.default_rng(0)
    units = random.integers(20, 80, 200)
    old = units * random.normal(3.0, 0.5, 200)
    new = old - units * random.normal(0.1, 0.2, 200)
    picks = random.integers(0, 200, (4000, 200))
    resampled = (new - old)[picks].sum(1) / units[picks].sum(1)
    found = difference(
        Scores(tuple(new), tuple(units.tolist())), Scores(tuple(old), tuple(units.tolist()))
    )
    assert found.value == pytest.approx((new - old).sum() / units.sum())
    assert found.error == pytest.approx(resampled.std(), rel=0.05)


def test_a_shift_that_every_token_shares_has_no_standard_error() -> None:
    units = (3, 5, 9)
    old = scores(3.0, 10.0, 4.5, units=units)
    new = scores(*(s - 0.25 * u for s, u in zip(old.sums, units, strict=True)), units=units)
    found = difference(new, old)
    assert (found.value, found.error) == (pytest.approx(-0.25), pytest.approx(0, abs=1e-12))


def test_models_scored_on_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        difference(scores(1.0, units=(2,)), scores(1.0, units=(3,)))


def test_a_single_row_tells_no_standard_error_and_is_never_clear() -> None:
    found = difference(scores(5.0), scores(1.0))
    assert math.isnan(found.error)
    assert not found.clear


def test_the_mean_over_texts_adds_their_variances() -> None:
    found = mean_difference([Difference(1.0, 0.3), Difference(3.0, 0.4)])
    assert (found.value, found.error) == (2.0, pytest.approx(0.25))


FOUND = {
    "base": {"a": scores(4.0, 2.0, units=(2, 2)), "b": scores(1.0, 1.0, units=(1, 1))},
    "linear": {"a": scores(3.0, 1.0, units=(2, 2)), "b": scores(1.0, 2.0, units=(1, 1))},
    "fisher": {"a": scores(2.0, 0.0, units=(2, 2)), "b": scores(1.0, 2.0, units=(1, 1))},
}


def test_the_table_has_a_line_per_model_and_compares_each_with_the_first() -> None:
    assert table(FOUND, NATS).splitlines() == [
        "| model  | a                      | b                      | mean                   |",
        "| ------ | ---------------------- | ---------------------- | ---------------------- |",
        "| base   | 1.500                  | 1.000                  | 1.250                  |",
        "| linear | 1.000 (-0.500 ± 0.000) | 1.500 (+0.500 ± 0.500) | 1.250 (+0.000 ± 0.250) |",
        "| fisher | 0.500 (-1.000 ± 0.000) | 1.500 (+0.500 ± 0.500) | 1.000 (-0.250 ± 0.250) |",
    ]


def test_the_summary_says_whether_fisher_and_linear_merge_differ_clearly() -> None:
    last = summary(FOUND, NATS).splitlines()[-1]
    assert last == (
        "Fisher merge less linear merge: a -0.500 ± 0.000; "
        "b +0.000 ± 0.000 (no clear difference); mean -0.250 ± 0.000."
    )


def test_shares_of_right_answers_are_told_in_percent() -> None:
    assert "50.0" in table({"base": {"a": scores(1, 0)}}, RIGHT)


def test_against_gives_every_text_and_their_mean() -> None:
    assert list(against(FOUND, "fisher", "base")) == ["a", "b", "mean"]
