"""Which half-lives are made of what was stored, and how the others are refused."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.continual.profiles import Profile, fit, gamma_of, gamma_of_half_life
from mergekit_cl.continual.reach import AMPLIFICATION, RESIDUAL, fit_half_life, half_lives
from mergekit_cl.errors import OptionError
from tests.pages import rows_of, section


def stored(count: int, steps: float = 1000) -> list[Profile]:
    """Two averages of each of so many steps, evenly apart."""
    times = np.linspace(steps / count, steps, count).tolist()
    return [Profile(gamma_of(sigma), time) for time in times for sigma in (0.05, 0.10)]


@pytest.mark.parametrize("count", [1, 3, 10, 50])
def test_what_is_said_to_be_within_reach_is_and_what_lies_beyond_is_refused(count: int) -> None:
    kept = stored(count)
    low, high = half_lives(kept)
    for half_life in np.geomspace(low, high, 23):
        found = fit_half_life(kept, float(half_life))
        assert found.residual <= RESIDUAL
        assert sum(abs(one) for one in found.weights) <= AMPLIFICATION
        assert sum(found.weights) == pytest.approx(1, abs=1e-9)
    for beyond in (low * 0.96, high * 1.04):
        with pytest.raises(OptionError, match="no average of this half-life") as refused:
            fit_half_life(kept, beyond)
        assert refused.value.hint == f"from {low:g} to {high:g} steps"


def test_more_snapshots_reach_further() -> None:
    lows, highs = zip(*(half_lives(stored(count)) for count in (1, 3, 10, 50)), strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs)


def test_a_half_life_that_no_power_function_has_is_refused_likewise() -> None:
    for half_life in (-1.0, 0.0, 500.0, 2000.0):
        with pytest.raises(OptionError, match="no average of this half-life"):
            fit_half_life(stored(10), half_life)


def test_the_half_lives_of_the_stored_averages_are_exact() -> None:
    for sigma in (0.05, 0.10):
        half_life = 1000 * (1 - 0.5 ** (1 / (gamma_of(sigma) + 1)))
        assert fit_half_life(stored(3), half_life).residual < 1e-6


def test_what_is_reached_scales_with_the_run() -> None:
    low, high = half_lives(stored(10))
    longer = half_lives(stored(10, 20_000))
    assert longer == pytest.approx((20 * low, 20 * high), rel=0.01)


def test_a_residual_is_the_scatter_that_is_left() -> None:
    # Weights that scatter independently at each step: the share is that of the profiles' norms.
    kept, random = stored(4, 400), np.random.default_rng(0)
    found = fit_half_life(kept, 50.0)
    edges = np.arange(401) / 400
    profiles = [np.diff(np.minimum(edges * 400 / p.step, 1) ** (p.gamma + 1)) for p in kept]
    wanted = np.diff(edges ** (gamma_of_half_life(50.0, 400) + 1))
    made = sum(w * one for w, one in zip(found.weights, profiles, strict=True))
    steps = random.standard_normal((20_000, 400))
    share = (steps @ (made - wanted)).std() / (steps @ wanted).std()
    assert share == pytest.approx(found.residual, rel=0.1)
    assert fit(kept, Profile(gamma_of_half_life(50.0, 400), 400)) == found


def test_the_table_of_the_page_says_what_is_reached() -> None:
    text = section("continual.md", "Averages of any length afterwards")
    rows = [row for row in rows_of(text) if row[0].isdigit()]
    assert len(rows) == 6
    for count, *ends in rows:
        for end, reached in zip(ends, half_lives(stored(int(count))), strict=True):
            assert end == f"{reached / 1000:.3f} T".lstrip("0"), count
