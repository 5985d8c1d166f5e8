"""The EWC penalty and its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mergekit_cl.continual import buckets
from mergekit_cl.continual.ewc import (
    Protection,
    add_penalty_gradient,
    penalty_sums,
    penalty_value,
)
from mergekit_cl.errors import MismatchError
from tests.continual import toys


def test_the_gradient_is_lambda_f_times_the_distance() -> None:
    parameters = toys.parameters(dtype=torch.float64)
    protection = toys.protection(dtype=torch.float64)
    toys.as_loss(parameters, protection, 3.5).backward()
    expected = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    add_penalty_gradient(parameters, protection, 3.5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=0)


def test_the_value_is_half_lambda_f_times_the_squared_distance() -> None:
    parameters, protection = toys.parameters(), toys.protection()
    wide = {name: parameter.detach().double() for name, parameter in parameters.items()}
    double = Protection(
        {name: tensor.double() for name, tensor in protection.fisher.items()},
        {name: tensor.double() for name, tensor in protection.anchor.items()},
    )
    value = penalty_value(parameters, protection, 0.7)
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(float(toys.as_loss(wide, double, 0.7)), rel=1e-6)


@given(seed=st.integers(0, 2**32), scratch=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_the_size_of_the_scratch_changes_no_bit(seed: int, scratch: int) -> None:
    results = []
    for size in (scratch, buckets.ON_CPU):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(buckets, "ON_CPU", size)
            parameters = toys.parameters(seed)
            # Neither every gradient nor every weight lies in memory in order.
            parameters["wide"] = nn.Parameter(torch.arange(35.0).view(7, 5).T)
            parameters["deep"].grad = torch.ones(4, 3, 2).permute(2, 1, 0)
            add_penalty_gradient(parameters, toys.protection(seed), 1.25)
            results.append([parameter.grad for parameter in parameters.values()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_order_of_a_stored_protection_changes_no_bit() -> None:
    for seed in range(20):
        parameters, protection = toys.parameters(seed), toys.protection(seed)
        other = Protection(
            dict(reversed(protection.fisher.items())), dict(reversed(protection.anchor.items()))
        )
        assert penalty_sums(parameters, protection, 0.7) == penalty_sums(parameters, other, 0.7)


def test_it_adds_to_what_the_task_wants() -> None:
    parameters, protection = toys.parameters(), toys.protection()
    parameters["long"].grad = torch.full((33,), 2.0)
    add_penalty_gradient(parameters, protection, 1.0)
    pull = protection.fisher["long"] * (parameters["long"].detach() - protection.anchor["long"])
    assert torch.equal(parameters["long"].grad, 2.0 + pull)


def test_a_protected_parameter_without_gradient_gets_one() -> None:
    parameters, protection = toys.parameters(), toys.protection()
    add_penalty_gradient(parameters, protection, 1.0)
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_frozen_and_unprotected_parameters_are_left_alone() -> None:
    parameters, protection = toys.parameters(), toys.protection()
    parameters["wide"].requires_grad_(False)
    parameters["other"] = nn.Parameter(torch.ones(3))
    add_penalty_gradient(parameters, protection, 1.0)
    assert parameters["wide"].grad is None
    assert parameters["other"].grad is None
    assert parameters["long"].grad is not None


def test_bfloat16_gradients_are_rounded_once_from_float32() -> None:
    parameters = toys.parameters(dtype=torch.bfloat16)
    protection = toys.protection()
    gradient = torch.randn(33, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    parameters["long"].grad = gradient.clone()
    add_penalty_gradient(parameters, protection, 1.0)
    theta, anchor = parameters["long"].detach().float(), protection.anchor["long"]
    pull = protection.fisher["long"] * (theta - anchor)
    assert parameters["long"].grad.dtype == torch.bfloat16
    assert torch.equal(parameters["long"].grad, (gradient.float() + pull).to(torch.bfloat16))


def test_rows_that_a_vocabulary_has_grown_by_are_free() -> None:
    protection = toys.protection(shapes={"embedding": (6, 4), "bias": (6,)})
    grown = toys.parameters(shapes={"embedding": (9, 4), "bias": (9,)})
    add_penalty_gradient(grown, protection, 2.0)
    for name, parameter in grown.items():
        theta = parameter.detach()[:6]
        pull = protection.fisher[name] * (theta - protection.anchor[name]) * 2.0
        assert torch.equal(parameter.grad[:6], pull)
        assert parameter.grad[6:].count_nonzero() == 0
    before = penalty_value(grown, protection, 1.0)
    with torch.no_grad():
        grown["embedding"][6:] += 100
    assert penalty_value(grown, protection, 1.0) == before


@pytest.mark.parametrize("shape", [(3, 4), (6, 5), (6, 4, 1), (24,)])
def test_any_other_change_of_shape_is_refused_by_name(shape: tuple[int, ...]) -> None:
    protection = toys.protection(shapes={"embedding": (6, 4)})
    with pytest.raises(MismatchError) as caught:
        add_penalty_gradient(toys.parameters(shapes={"embedding": shape}), protection, 1.0)
    assert "embedding" in str(caught.value.detail)


def test_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(6, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    protection = toys.protection(shapes={"weight": (6, 4)})
    with pytest.raises(MismatchError, match="sparse"):
        add_penalty_gradient(dict(table.named_parameters()), protection, 1.0)


def test_fisher_and_anchor_must_belong_together() -> None:
    with pytest.raises(MismatchError, match="name different"):
        Protection({"a": torch.ones(2)}, {"b": torch.ones(2)})
    with pytest.raises(MismatchError, match="shape"):
        Protection({"a": torch.ones(2)}, {"a": torch.ones(3)})


def test_accumulation_and_loss_scale_change_nothing() -> None:
    """One batch, four parts of it, and a loss scaled for fp16 give the same gradient."""
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shapes = {"weight": (4, 5), "bias": (4,)}
    protection = toys.protection(shapes=shapes, dtype=torch.float64)
    gradients = []
    for parts, scale in ((1, 1.0), (4, 1.0), (2, 1024.0)):
        parameters = toys.parameters(shapes=shapes, dtype=torch.float64)
        for part in inputs.chunk(parts):
            out = torch.nn.functional.linear(part, parameters["weight"], parameters["bias"])
            (out.square().sum() * scale / len(inputs)).backward()
        for parameter in parameters.values():
            parameter.grad /= scale
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        add_penalty_gradient(parameters, protection, 10.0)
        gradients.append({name: parameter.grad for name, parameter in parameters.items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-12, atol=1e-14)
