from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_cl.divergence.forms import fisher_squares, quadratic_forms

COUNT = 1000


def blocks(inputs: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    models = [torch.randn(COUNT, generator=draw).to(dtypes[k % 3]) for k in range(inputs)]
    return models, [torch.rand(COUNT, generator=draw).to(dtypes[k % 2]) for k in range(inputs)]


def scratch(count: int) -> list[torch.Tensor]:
    return [torch.full((COUNT,), float("nan"), dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("inputs", [2, 3])
def test_the_forms_are_the_sums_over_pairs_of_differences(inputs: int) -> None:
    models, fishers = blocks(inputs)
    found = quadratic_forms(models, models, fishers, scratch(inputs + 2))
    x = np.stack([model.double().numpy() for model in models])
    for p in range(inputs):
        expected = ((x - x[p]) * fishers[p].double().numpy()) @ (x - x[p]).T
        np.testing.assert_allclose(found[p], expected, rtol=1e-12, atol=1e-12)
        assert found[p, p].tolist() == [0] * inputs  # a parent is at no distance from itself


def test_a_parent_without_a_fisher_adds_nothing() -> None:
    models, fishers = blocks(2)
    found = quadratic_forms(models, models, [None, fishers[1]], scratch(4))
    assert (found[0] == 0).all()
    assert found[1, 0, 0] > 0
    wide = [model.double() for model in models]
    squares = fisher_squares(models[0], wide, [None, fishers[1].double()], scratch(3))
    assert squares.tolist() == [0, pytest.approx(found[1, 0, 0], rel=1e-12)]
