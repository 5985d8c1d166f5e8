from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mergekit_cl.continual.posthoc import PowerAverage, decay_at, synthesise
from mergekit_cl.continual.profiles import (
    Profile,
    fit,
    gamma_of,
    gamma_of_half_life,
    inner_product,
    sigma_of,
)
from mergekit_cl.errors import MismatchError, OptionError

profiles = st.builds(Profile, st.floats(0.5, 40), st.floats(1, 1000))


def density(profile: Profile, times: np.ndarray) -> np.ndarray:
    ratio = np.clip(times / profile.step, 1e-300, None)
    values = (profile.gamma + 1) / profile.step * ratio**profile.gamma
    return np.where(times <= profile.step, values, 0.0)


def integral(values: np.ndarray, times: np.ndarray) -> float:
    return float((np.diff(times) * (values[1:] + values[:-1]) / 2).sum())


@given(profiles)
@settings(max_examples=40, deadline=None)
def test_the_length_is_the_standard_deviation_of_the_profile(profile: Profile) -> None:
    times = np.linspace(0, profile.step, 200_001)
    weight = density(profile, times)
    mean = integral(weight * times, times)
    spread = integral(weight * (times - mean) ** 2, times)
    assert integral(weight, times) == pytest.approx(1, rel=1e-4)
    assert math.sqrt(spread) / profile.step == pytest.approx(sigma_of(profile.gamma), rel=1e-4)


@given(st.floats(0.002, 0.285))
def test_length_and_exponent_lead_to_each_other(sigma_rel: float) -> None:
    assert sigma_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


def test_exponents_are_those_of_the_paper() -> None:
    # Karras et al. 2024, section 3.1: sigma_rel .05 and .10 are gamma of about 16.97 and 6.94.
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@given(profiles, profiles)
@settings(max_examples=60, deadline=None)
def test_inner_products_are_the_integrals(one: Profile, other: Profile) -> None:
    times = np.linspace(0, min(one.step, other.step), 200_001)
    expected = integral(density(one, times) * density(other, times), times)
    assert inner_product(one, other) == pytest.approx(expected, rel=1e-3, abs=1e-12)
    assert inner_product(one, other) == pytest.approx(inner_product(other, one), rel=1e-12)


@given(st.floats(0.5, 30), st.integers(1, 200))
def test_updates_weigh_each_step_by_the_integral_of_the_profile_over_it(
    gamma: float, steps: int
) -> None:
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        decay = decay_at(step, gamma)
        weights *= decay
        weights[step - 1] += 1 - decay
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-9, atol=1e-15)


@given(st.floats(1, 400))
def test_half_of_the_weight_is_younger_than_the_half_life(half_life: float) -> None:
    gamma = gamma_of_half_life(half_life, 1000)
    assert gamma > 0
    assert (1 - half_life / 1000) ** (gamma + 1) == pytest.approx(0.5)


def test_a_stored_profile_is_made_of_itself() -> None:
    stored = [Profile(gamma, step) for step in (250, 500, 750, 1000) for gamma in (6.94, 16.97)]
    for place, wanted in enumerate(stored):
        expected = [0.0] * len(stored)
        expected[place] = 1.0
        np.testing.assert_allclose(fit(stored, wanted).weights, expected, atol=1e-6)
        assert fit(stored, wanted).residual < 1e-5


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.12, 0.15])
def test_coefficients_are_the_least_squares_of_sampled_profiles(sigma_rel: float) -> None:
    stored = [Profile(gamma_of(s), t) for t in (400, 700, 1000) for s in (0.05, 0.10)]
    wanted = Profile(gamma_of(sigma_rel), 1000)
    times = (np.arange(100_000) + 0.5) / 100
    basis = np.stack([density(profile, times) for profile in stored], axis=1)
    # The sum is 1 by giving the last what the others leave.
    moved = basis[:, :-1] - basis[:, -1:]
    found = np.linalg.lstsq(moved, density(wanted, times) - basis[:, -1], rcond=None)[0]
    expected = np.append(found, 1 - found.sum())
    np.testing.assert_allclose(fit(stored, wanted).weights, expected, atol=1e-3)
    left = density(wanted, times) - basis @ expected
    relative = np.linalg.norm(left) / np.linalg.norm(density(wanted, times))
    assert fit(stored, wanted).residual == pytest.approx(relative, rel=0.02, abs=1e-5)


def tracked(wanted: list[float], steps: int, every: int) -> tuple[list, dict[float, torch.Tensor]]:
    """Snapshots of two tracks on a training run, and averages of other lengths kept directly."""
    torch.manual_seed(0)
    model = nn.Linear(20, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    target = torch.randn(20, 5)
    tracks = [PowerAverage(model, sigma_rel) for sigma_rel in (0.05, 0.10)]
    direct = {sigma_rel: PowerAverage(model, sigma_rel) for sigma_rel in wanted}
    snapshots = []
    for step in range(1, steps + 1):
        x = torch.randn(8, 20)
        loss = (model(x) - x @ target - torch.randn(8, 5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for average in (*tracks, *direct.values()):
            average.update(model)
        if step % every == 0:
            snapshots += [track.snapshot() for track in tracks]
    final = {sigma: average.tensors["weight"].clone() for sigma, average in direct.items()}
    final[0.0] = model.weight.detach().clone()
    return snapshots, final


def test_a_synthesised_average_is_the_one_kept_directly() -> None:
    snapshots, final = tracked([0.06, 0.075, 0.09, 0.12, 0.2], 400, 50)
    noise = float((final[0.0] - final[0.06]).norm())
    for sigma_rel, direct in final.items():
        if sigma_rel:
            made = synthesise(snapshots, Profile(gamma_of(sigma_rel), 400))["weight"]
            # .2 is far outside of the two tracks.
            bound = 0.05 if sigma_rel == 0.2 else 0.02
            assert float((made - direct).norm()) < bound * noise, sigma_rel
    # Without synthesis the nearest track is far off.
    stored = snapshots[-1][1]["weight"]
    assert float((stored - final[0.2]).norm()) > 0.2 * noise


def test_an_earlier_step_is_made_from_snapshots_around_it() -> None:
    _, final = tracked([0.08], 300, 25)
    snapshots, _ = tracked([0.08], 400, 25)
    made = synthesise(snapshots, Profile(gamma_of(0.08), 300))["weight"]
    noise = float((final[0.0] - final[0.08]).norm())
    assert float((made - final[0.08]).norm()) < 0.02 * noise


def test_equal_weights_stay_and_integers_are_those_of_the_nearest_step() -> None:
    stored = [Profile(gamma, step) for step in (10, 20, 30) for gamma in (6.94, 16.97)]
    snapshots = [
        (profile, {"w": torch.full((3,), 1.7), "n": torch.tensor(int(profile.step))})
        for profile in stored
    ]
    made = synthesise(snapshots, Profile(9.0, 21))
    torch.testing.assert_close(made["w"], torch.full((3,), 1.7), rtol=1e-6, atol=0)
    assert made["n"].item() == 20


def test_the_first_update_takes_the_model_as_it_is() -> None:
    model = nn.Linear(2, 2)
    average = PowerAverage(model, 0.1)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(model)
    assert torch.equal(average.tensors["weight"], model.weight)


def test_lengths_that_no_profile_has_are_refused() -> None:
    for sigma_rel in (0.0, -0.1, 0.3, float("nan")):
        with pytest.raises(OptionError, match="out of range"):
            gamma_of(sigma_rel)
    with pytest.raises(OptionError, match="below half"):
        gamma_of_half_life(600, 1000)
    with pytest.raises(OptionError, match="no stored"):
        fit([], Profile(7, 10))
    with pytest.raises(MismatchError, match="same tensors"):
        synthesise(
            [(Profile(7, 1), {"a": torch.ones(1)}), (Profile(7, 2), {"b": torch.ones(1)})],
            Profile(7, 2),
        )
