from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.decide.minimax import Array, minimax_weights


def problem(seed: int, inputs: int, entries: int) -> tuple[Array, Array]:
    """Forms of `inputs` models of `entries` weights whose Fishers differ by up to a million."""
    draw = np.random.default_rng(seed)
    models = draw.normal(size=(inputs, entries))
    scales = 1e-6 * 10 ** draw.uniform(-3, 3, size=(inputs, 1))
    fishers = draw.exponential(size=(inputs, entries)) * scales
    forms = np.stack(
        [((models - p) * f) @ (models - p).T for p, f in zip(models, fishers, strict=True)]
    )
    constants = draw.exponential(size=inputs) * forms.max() * 0.1 * (seed % 2)
    return forms, constants


def worst(forms: Array, constants: Array, points: Array) -> Array:
    losses = np.einsum("pkl,nk,nl->np", forms, points, points) + constants
    found: Array = losses.max(1)
    return found


def brute_force(forms: Array, constants: Array) -> float:
    """The least worst loss on ever finer grids around the best point so far, over the simplex."""
    count = len(constants)
    ranges = [(0.0, 1.0)] * (count - 1)
    for _ in range(14):
        axes = [np.linspace(low, high, 13) for low, high in ranges]
        points = np.stack(np.meshgrid(*axes), -1).reshape(-1, count - 1)
        points = np.hstack([points, 1 - points.sum(1, keepdims=True)])
        points = points[points[:, -1] >= 0]
        losses = worst(forms, constants, points)
        best = points[losses.argmin()]
        spans = [(high - low) / 5 for low, high in ranges]
        ranges = [(max(b - s, 0.0), min(b + s, 1.0)) for b, s in zip(best, spans, strict=False)]
    return float(losses.min())


@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("entries", [1, 2, 30])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_weights_of_an_ever_finer_grid_have_a_smaller_worst_loss(
    inputs: int, entries: int, seed: int
) -> None:
    forms, constants = problem(seed, inputs, entries)
    found = minimax_weights(forms, constants)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found.min() >= 0
    reached = float(worst(forms, constants, found[None])[0])
    assert reached <= brute_force(forms, constants) + 1e-9 * forms.max()


def test_two_models_meet_where_their_losses_are_equal() -> None:
    # 1/2 F_p d^2 with F = 4 and 1: sqrt(4) w_b = sqrt(1) w_a.
    forms = np.array([[[0.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert minimax_weights(forms, np.zeros(2)) == pytest.approx([2 / 3, 1 / 3], abs=1e-9)


def test_where_nothing_matters_weights_are_equal() -> None:
    assert minimax_weights(np.zeros((3, 3, 3)), np.zeros(3)).tolist() == [1 / 3] * 3


def test_a_model_that_cannot_lose_more_is_left_out() -> None:
    forms = np.array([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert minimax_weights(forms, np.array([1.0, 0.0])) == pytest.approx([1, 0], abs=1e-4)
