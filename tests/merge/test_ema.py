from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.merge.ema import decay_of_half_life, decays, ema_update
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.merge.rounding import round_into

DECAY = 0.999


def update(
    state: torch.Tensor, onlines: list[torch.Tensor], steps: tuple[float, ...]
) -> torch.Tensor:
    scratch = [torch.empty_like(state) for _ in range(SCRATCH_BUFFERS)]
    return ema_update([state, *onlines], scratch, decays=steps).exact.clone()


def draw(seed: int, count: int = 300) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@given(st.floats(0, 1), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_updates_at_once_equal_updates_in_turn_to_the_bit(decay: float, count: int) -> None:
    onlines = [draw(seed) for seed in range(1, count + 1)]
    together = update(draw(0), onlines, (decay,) * count)
    turn = draw(0)
    for online in onlines:
        turn = update(turn, [online], (decay,))
    assert torch.equal(together.view(torch.int32), turn.view(torch.int32))


def test_one_update_is_the_exact_average_but_for_float32_rounding() -> None:
    state, online = draw(0), draw(1)
    found = update(state, [online], (0.9,))
    kept, moved = Fraction(0.9), Fraction(1.0 - 0.9)
    for s, o, f in zip(state.tolist(), online.tolist(), found.tolist(), strict=True):
        exact = kept * Fraction(s) + moved * Fraction(o)
        assert abs(Fraction(f) - exact) <= Fraction(2) ** -22 * Fraction(max(abs(s), abs(o)))


def test_a_bfloat16_state_stalls_without_its_residual_and_arrives_with_it() -> None:
    target, start = draw(1), draw(0)
    updates = 3000
    exact = start.double() * DECAY**updates + target.double() * (1 - DECAY**updates)
    plain = start.bfloat16()
    carried, residual = start.bfloat16(), start - start.bfloat16().float()
    for _ in range(updates):
        round_into(plain, update(plain.float(), [target], (DECAY,)))
        whole = update(carried.float() + residual, [target], (DECAY,))
        round_into(carried, whole)
        residual = whole - carried.float()
    way = float((exact - start.double()).norm())
    missed_plain = float((plain.double() - exact).norm()) / way
    missed_carried = float((carried.double() + residual.double() - exact).norm()) / way
    assert missed_plain > 0.8
    assert missed_carried < 0.01


def test_half_of_the_state_is_left_after_a_half_life() -> None:
    assert decay_of_half_life(7) ** 7 == pytest.approx(0.5)


def test_warm_up_starts_low_goes_on_where_it_stopped_and_ends_at_the_decay() -> None:
    first = decays(DECAY, 5, warmup=True, updates=0)
    assert first == (1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14)
    assert decays(DECAY, 3, warmup=True, updates=2) == first[2:]
    assert decays(DECAY, 1, warmup=True, updates=10**6) == (DECAY,)
    assert decays(DECAY, 2, warmup=False, updates=0) == (DECAY, DECAY)
