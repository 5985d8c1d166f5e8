"""EWC as an implicit step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mergekit_cl.continual.ewc import Protection, add_penalty_gradient
from mergekit_cl.continual.proximal import proximal_step
from mergekit_cl.errors import OptionError
from tests.continual import toys

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, dampening=0.25),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
}

CURVATURE = torch.tensor([2.0, 2.0, 3.0, 3.0], dtype=torch.float64)
WANTED = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
PROTECTION = Protection(
    {"w": torch.tensor([0.3, 2.0, 1.0, 0.0], dtype=torch.float64)},
    {"w": torch.tensor([-1.0, 1.0, 2.0, 9.0], dtype=torch.float64)},
)


def train(
    make: Make, update: str, loss_scale: float | Tensor, strength: float, steps: int
) -> Tensor:
    """Weights after training a quadratic, with the learning rate falling to 0 over the steps.

    loss_scale: one of shape (n, 1) trains n quadratics at once, to weights of shape (n, 4).
    """
    weight = nn.Parameter(torch.zeros_like(loss_scale * CURVATURE))
    fisher, anchor = (
        held["w"].expand_as(weight) for held in (PROTECTION.fisher, PROTECTION.anchor)
    )
    protection = Protection({"w": fisher.clone()}, {"w": anchor.clone()})
    optimizer = make([weight])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_scale / 2 * CURVATURE * (weight - WANTED) ** 2).sum().backward()
        if update == "coupled":
            add_penalty_gradient({"w": weight}, protection, strength)
        optimizer.step()
        if update == "proximal":
            proximal_step(optimizer, {"w": weight}, protection, strength)
        schedule.step()
    return weight.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_updates_rest_where_task_and_penalty_cancel(name: str) -> None:
    loss_scale = torch.tensor([[0.3], [10.0]], dtype=torch.float64)
    strength, fisher, anchor = 2.0, PROTECTION.fisher["w"], PROTECTION.anchor["w"]
    pull = strength * fisher
    rest = (loss_scale * CURVATURE * WANTED + pull * anchor) / (loss_scale * CURVATURE + pull)
    for update in ("coupled", "proximal"):
        found = train(OPTIMIZERS[name], update, loss_scale, strength, 1000)
        torch.testing.assert_close(found, rest, rtol=1e-4, atol=1e-4, msg=update)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_it_cannot_diverge_where_the_explicit_step_does(name: str) -> None:
    strength = 1e4  # lr * lambda * F is 150 and more with SGD
    near = train(OPTIMIZERS[name], "proximal", 1.0, strength, 300)
    protected = PROTECTION.fisher["w"] > 0
    anchor = PROTECTION.anchor["w"]
    torch.testing.assert_close(near[protected], anchor[protected], rtol=0, atol=2e-2)
    if name in ("sgd", "momentum"):
        explicit = train(OPTIMIZERS[name], "coupled", 1.0, strength, 300)
        assert not bool((explicit[protected].abs() < 1e6).any())


@given(factor=st.floats(1e-30, 1e30), start=st.floats(-10, 10), anchor=st.floats(-10, 10))
@settings(max_examples=100, deadline=None)
def test_it_never_goes_past_the_anchor(factor: float, start: float, anchor: float) -> None:
    weight = nn.Parameter(torch.tensor([start]))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    held = Protection({"w": torch.ones(1)}, {"w": torch.tensor([anchor])})
    proximal_step(optimizer, {"w": weight}, held, factor)
    # Up to the rounding of the last subtraction.
    slack = 2e-6
    low, high = sorted((float(before), float(held.anchor["w"])))
    assert low - slack <= weight.item() <= high + slack


def test_one_step_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(50, generator=generator))
    optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.99), eps=1e-6)
    held = Protection(
        {"w": torch.rand(50, generator=generator)}, {"w": torch.randn(50, generator=generator)}
    )
    for _ in range(3):
        weight.grad = torch.randn(50, generator=generator)
        optimizer.step()
    v = optimizer.state[weight]["exp_avg_sq"].double() / (1 - 0.99**3)
    s = 0.01 * 30 * held.fisher["w"].double() / (v.sqrt() + 1e-6)
    expected = (weight.detach().double() + s * held.anchor["w"].double()) / (1 + s)
    proximal_step(optimizer, {"w": weight}, held, 30.0)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_without_fisher_not_a_bit_changes() -> None:
    weight = nn.Parameter(torch.randn(9))
    held = Protection({"w": torch.zeros(9)}, {"w": torch.ones(9)})
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.zeros(9)
    optimizer.step()
    before = weight.detach().clone()
    proximal_step(optimizer, {"w": weight}, held, 1.0)
    assert torch.equal(weight, before)


def test_each_group_pulls_by_its_own_learning_rate() -> None:
    slow, fast = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": [slow], "lr": 0.25}, {"params": [fast], "lr": 1.0}]
    held = Protection(
        {"slow": torch.ones(2), "fast": torch.ones(2)},
        {"slow": torch.zeros(2), "fast": torch.zeros(2)},
    )
    proximal_step(torch.optim.SGD(groups), {"slow": slow, "fast": fast}, held, 1.0)
    assert torch.equal(slow, torch.full((2,), 0.8))
    assert torch.equal(fast, torch.full((2,), 0.5))


def test_what_is_not_trained_or_not_stepped_is_left_alone() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in ("stepped", "unused", "elsewhere")}
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = torch.optim.Adam([parameters["stepped"], parameters["unused"], frozen])
    parameters["stepped"].grad = torch.zeros(2)
    optimizer.step()
    names = [*parameters, "frozen"]
    held = Protection(
        {name: torch.ones(2) for name in names}, {name: torch.zeros(2) for name in names}
    )
    proximal_step(optimizer, {**parameters, "frozen": frozen}, held, 1.0)
    assert parameters["stepped"].abs().max() < 1
    for untouched in (parameters["unused"], parameters["elsewhere"], frozen):
        assert torch.equal(untouched, torch.ones(2))


def test_rows_that_a_vocabulary_has_grown_by_are_free() -> None:
    weight = nn.Parameter(torch.ones(5, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(5, 3)
    optimizer.step()
    before = weight.detach().clone()
    held = toys.protection(shapes={"w": (3, 3)})
    proximal_step(optimizer, {"w": weight}, held, 1.0)
    assert torch.equal(weight[3:], before[3:])
    assert not torch.equal(weight[:3], before[:3])


class Own(torch.optim.SGD):
    """An optimizer that may scale a gradient in any way."""


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.Adagrad(p), "Adagrad"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
        (lambda p: Own(p, lr=0.1), "Own"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "maximize"),
    ],
)
def test_other_optimizers_are_refused_by_name(make: Make, name: str) -> None:
    parameters = toys.parameters()
    with pytest.raises(OptionError) as caught:
        proximal_step(make(parameters.values()), parameters, toys.protection(), 1.0)
    assert name in str(caught.value.detail)
