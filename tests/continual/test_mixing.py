from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.continual.mixing import (
    Realised,
    draw,
    fresh_rows,
    loss_weights,
    mix,
    mix_beside,
    rows_of,
)
from mergekit_cl.errors import OptionError


def test_a_quarter_of_eight_rows_is_two_in_every_batch() -> None:
    assert [rows_of(8, 0.25, step) for step in range(6)] == [2] * 6


def test_a_tenth_of_eight_rows_is_four_in_every_five_batches() -> None:
    found = [rows_of(8, 0.1, step) for step in range(500)]
    assert set(found) == {0, 1}
    assert found[:5] == [0, 1, 1, 1, 1]
    assert found == found[:5] * 100


@given(st.integers(1, 64), st.integers(0, 999), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_the_ratio_is_realised_exactly_over_time(batch: int, thousandths: int, steps: int) -> None:
    found = [rows_of(batch, thousandths / 1000, step) for step in range(steps)]
    exact = Fraction(thousandths, 1000) * batch
    assert sum(found) == exact * steps // 1
    assert set(found) <= {int(exact), int(exact) + 1}


@given(st.integers(1, 64), st.integers(0, 90), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_beside_new_rows_the_ratio_is_that_of_both(fresh: int, percent: int, steps: int) -> None:
    rows = range(10_000)
    replayed = sum(
        len(mix_beside(rows, fresh, percent / 100, step=step).replayed) for step in range(steps)
    )
    exact = Fraction(percent, 100 - percent) * fresh * steps
    assert replayed == exact // 1


def test_a_batch_keeps_its_size_and_an_empty_buffer_leaves_it_new() -> None:
    full = mix(range(100), 8, 0.25, step=3)
    assert (full.fresh, len(full.replayed), full.asked) == (6, 2, 2)
    small = mix(range(1), 8, 0.5, step=3)
    assert (small.fresh, len(small.replayed), small.asked) == (7, 1, 4)
    empty = mix([], 8, 0.5, step=3)
    assert (empty.fresh, empty.replayed, empty.asked) == (8, (), 4)
    assert loss_weights(8, 0, 900, 0) == (1.0, 1.0)


def test_a_step_draws_the_same_rows_again_and_another_step_others() -> None:
    rows = [f"row {number}" for number in range(1000)]
    assert draw(rows, 5, step=7) == draw(rows, 5, step=7)
    steps = {draw(rows, 5, step=step) for step in range(100)}
    seeds = {draw(rows, 5, step=0, seed=seed) for seed in range(100)}
    assert len(steps) == len(seeds) == 100


def test_every_set_of_rows_is_drawn_equally_often() -> None:
    counts = dict.fromkeys(combinations(range(6), 3), 0)
    for step in range(8000):
        counts[draw(range(6), 3, step=step)] += 1
    observed = np.array([*counts.values()])
    # 20 sets: the upper 0.1 % point of chi-square with 19 degrees of freedom.
    assert ((observed - 400) ** 2 / 400).sum() < 43.82


@given(
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 12),
    st.integers(0, 40),
    st.integers(0, 100),
)
def test_new_rows_are_counted_as_they_are_mixed(
    batch: int, ratio: float, kept: int, steps: int, first: int
) -> None:
    mixed = [mix(range(kept), batch, ratio, step=step) for step in range(first, first + steps)]
    assert fresh_rows(batch, ratio, kept, steps, first=first) == sum(one.fresh for one in mixed)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 1000))
def test_no_row_is_drawn_twice(size: int, count: int, step: int) -> None:
    found = draw(range(size), count, step=step)
    assert len(set(found)) == len(found) == min(size, count)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5000), st.integers(1, 5000))
def test_weights_share_tokens_as_rows_are_and_keep_their_sum(
    fresh: int, replayed: int, fresh_tokens: int, replayed_tokens: int
) -> None:
    new, old = loss_weights(fresh, replayed, fresh_tokens, replayed_tokens)
    total = fresh_tokens + replayed_tokens
    assert new * fresh_tokens + old * replayed_tokens == pytest.approx(total)
    assert old * replayed_tokens / total == pytest.approx(replayed / (fresh + replayed))


def test_the_weighted_gradient_is_that_of_the_mean_over_both_sides() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    new, old = torch.randn(30, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    w_new, w_old = loss_weights(6, 2, 30, 7)
    losses = [(part @ weight).square() for part in (new, old)]
    ((w_new * losses[0].sum() + w_old * losses[1].sum()) / 37).backward()
    assert weight.grad is not None
    found, weight.grad = weight.grad.clone(), None
    (0.75 * (new @ weight).square().mean() + 0.25 * (old @ weight).square().mean()).backward()
    torch.testing.assert_close(found, weight.grad)


def test_what_was_mixed_is_counted() -> None:
    counts = Realised().plus(6, 2, 600, 100).plus(8, 0, 700, 0)
    assert counts == Realised(14, 2, 1300, 100)
    assert counts.rows_share == 2 / 16
    assert counts.tokens_share == 100 / 1400
    assert (Realised().rows_share, Realised().tokens_share) == (0, 0)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(OptionError, match="share of the batch"):
        rows_of(8, ratio, 0)
