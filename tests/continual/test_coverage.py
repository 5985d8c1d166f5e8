"""How much of a protection reaches what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit_cl.continual.coverage import coverage
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.errors import ClmergeError, InputError, MismatchError, NonFiniteError


def held(**fisher: list[float]) -> Protection:
    tensors = {name: torch.tensor(values) for name, values in fisher.items()}
    return Protection(tensors, {name: torch.zeros_like(t) for name, t in tensors.items()})


def trained(*names: str, size: int = 2) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(size)) for name in names}


def test_every_name_is_accounted_for() -> None:
    parameters = {**trained("both", "new"), "frozen": nn.Parameter(torch.ones(2), False)}
    found = coverage(parameters, held(both=[1.0, 2.0], frozen=[4.0, 1.0], gone=[1.0, 1.0]))
    assert found.protected == ("both",)
    assert found.unprotected == ("new",)
    assert found.frozen == ("frozen",)
    assert found.absent == ("gone",)
    assert found.mass == 3.0
    assert found.share == 0.3


def test_grown_rows_are_counted() -> None:
    found = coverage(trained("table", size=7), held(table=[1.0, 2.0]))
    assert found.grown == {"table": 5}


def test_a_frozen_weight_that_low_rank_factors_move_is_protected() -> None:
    parameters = {"w": nn.Parameter(torch.ones(2), False)}
    assert coverage(parameters, held(w=[1.0, 0.0]), adapted={"w"}).protected == ("w",)


def test_nothing_in_common_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(MismatchError) as caught:
        coverage(trained("model.a", "model.b"), held(a=[1.0, 1.0]))
    assert caught.value.detail == (
        "in the protection, no parameter: a; trained, not in the protection: model.a, model.b"
    )


def test_a_fisher_of_zero_is_an_error() -> None:
    with pytest.raises(MismatchError) as caught:
        coverage(trained("a", "b"), held(a=[0.0, 0.0], gone=[1.0, 1.0]))
    assert "Fisher of 0: a" in str(caught.value.detail)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1.0, float("nan")], NonFiniteError),
        ([float("inf"), 1.0], NonFiniteError),
        ([1.0, -1e-9], InputError),
    ],
)
def test_a_fisher_that_is_none_is_refused_by_name(
    values: list[float], error: type[ClmergeError]
) -> None:
    with pytest.raises(error) as caught:
        coverage(trained("a"), held(a=values))
    assert str(caught.value.detail).startswith("a")


def test_the_mass_is_summed_in_float64() -> None:
    fisher = torch.full((2**20,), 1e-3)
    fisher[0] = 1e6
    found = coverage(
        {"w": nn.Parameter(torch.zeros(2**20))}, Protection({"w": fisher}, {"w": fisher})
    )
    assert found.mass == pytest.approx(1e6 + (2**20 - 1) * float(fisher[1]), rel=1e-12)
