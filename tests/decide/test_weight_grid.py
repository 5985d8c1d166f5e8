from __future__ import annotations

import pytest

from mergekit_cl.decide.weight_grid import best_point, grid


def test_two_models_share_evenly_spaced_weights_from_one_to_the_other() -> None:
    assert grid(2, 5) == [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]


@pytest.mark.parametrize("inputs", [2, 3, 5])
@pytest.mark.parametrize("points", [3, 4, 11])
def test_weights_are_in_the_simplex_each_once_and_hold_every_model_alone(
    inputs: int, points: int
) -> None:
    found = grid(inputs, points)
    assert len(set(found)) == len(found)
    for weights in found:
        assert len(weights) == inputs
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1, abs=1e-4 * inputs)
    for k in range(inputs):
        assert tuple(float(j == k) for j in range(inputs)) in found


def test_more_models_each_have_a_line_through_equal_weights() -> None:
    found = grid(3, 4)
    assert found[0] == (0.3333, 0.3333, 0.3333)
    assert [w for w in found if w[0] == w[2]] == [
        (0.3333, 0.3333, 0.3333),
        (0.5, 0, 0.5),
        (0.1667, 0.6667, 0.1667),
        (0, 1, 0),
    ]
    assert len(found) == 1 + 3 * 3


def test_of_equally_bad_points_the_smaller_sum_then_equal_weights_then_the_first_is_taken() -> None:
    points = [(1.0, 0.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
    assert best_point(points, [(3, 0), (2, 1), (2, 0), (2, 2)]) == 2
    assert best_point(points, [(2, 2), (2, 2), (2, 2), (2, 2)]) == 2
    assert best_point(points, [(1, 1), (2, 0), (2, 0), (2, 0)]) == 0
    assert best_point(points, [(3, 0), (2, 0), (3, 0), (0, 2)]) == 1
