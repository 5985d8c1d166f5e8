"""EWC for low-rank factors, in the weights they change."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mergekit_cl.continual import lowrank
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.lowrank import (
    Factors,
    LowRank,
    add_lowrank_gradient,
    lowrank_penalty_value,
)


def weight(
    transposed: bool, *, updates: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64
) -> LowRank:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    factors = tuple(
        Factors(nn.Parameter(random(r, 9)), nn.Parameter(random(6, r)), 0.5 + r)
        for r in range(2, 2 + updates)
    )
    return LowRank("w", random(9, 6) if transposed else random(6, 9), factors, transposed)


def protection_of(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Protection:
    generator = torch.Generator().manual_seed(11)
    fisher = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    return Protection({"w": fisher}, {"w": torch.randn(shape, generator=generator).to(dtype)})


def merged(one: LowRank) -> Tensor:
    """The weight, as its layer would compute with it."""
    update = sum(f.scale * (f.b @ f.a) for f in one.factors)
    assert isinstance(update, Tensor)
    return one.base + (update.T if one.transposed else update)


def as_loss(one: LowRank, protection: Protection, strength: float) -> Tensor:
    moved = merged(one)[: len(protection.fisher["w"])] - protection.anchor["w"]
    return strength / 2 * (protection.fisher["w"] * moved**2).sum()


def gradients(one: LowRank) -> list[Tensor | None]:
    return [tensor.grad for f in one.factors for tensor in (f.a, f.b)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_gradients_are_those_of_the_merged_weight(
    transposed: bool, updates: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "ON_CPU", block)
    one = weight(transposed, updates=updates)
    protection = protection_of(one.base.shape)
    loss = as_loss(one, protection, 2.5)
    expected = torch.autograd.grad(loss, [t for f in one.factors for t in (f.a, f.b)])
    add_lowrank_gradient([one], protection, 2.5)
    for found, wanted in zip(gradients(one), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    value = lowrank_penalty_value([one], protection, 2.5)
    assert float(value) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_a_vocabulary_has_grown_by_are_free(transposed: bool) -> None:
    one = weight(transposed)
    rows, columns = one.base.shape
    protection = protection_of((rows - 2, columns))
    expected = torch.autograd.grad(
        as_loss(one, protection, 1.0), [one.factors[0].a, one.factors[0].b]
    )
    add_lowrank_gradient([one], protection, 1.0)
    for found, wanted in zip(gradients(one), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_where_b_is_zero_and_the_anchor_is_the_base_nothing_pulls() -> None:
    one = weight(False)
    with torch.no_grad():
        one.factors[0].b.zero_()
    protection = Protection(protection_of(one.base.shape).fisher, {"w": one.base})
    add_lowrank_gradient([one], protection, 1.0)
    assert all(g is not None and g.count_nonzero() == 0 for g in gradients(one))


def test_only_factors_that_are_trained_get_a_gradient() -> None:
    one = weight(False, updates=2)
    one.factors[0].a.requires_grad_(False)
    one.factors[0].b.requires_grad_(False)
    add_lowrank_gradient([one], protection_of(one.base.shape), 1.0)
    assert [g is None for g in gradients(one)] == [True, True, False, False]


def test_it_adds_to_what_the_task_wants() -> None:
    alone, together = weight(False), weight(False)
    together.factors[0].a.grad = torch.full((2, 9), 3.0, dtype=torch.float64)
    for one in (alone, together):
        add_lowrank_gradient([one], protection_of(one.base.shape), 1.0)
    torch.testing.assert_close(together.factors[0].a.grad, alone.factors[0].a.grad + 3.0)


def test_a_weight_without_fisher_is_left_alone() -> None:
    one = weight(False)
    add_lowrank_gradient([one], Protection({}, {}), 1.0)
    assert gradients(one) == [None, None]
    assert float(lowrank_penalty_value([one], Protection({}, {}), 1.0)) == 0


def test_bfloat16_bases_and_anchors_are_used_in_float32() -> None:
    one = weight(False, dtype=torch.float32)
    rounded = LowRank("w", one.base.to(torch.bfloat16), one.factors)
    protection = protection_of(one.base.shape, torch.float32)
    wide = Protection(
        {"w": protection.fisher["w"].double()},
        {"w": protection.anchor["w"].to(torch.bfloat16).double()},
    )
    double = LowRank(
        "w",
        rounded.base.double(),
        tuple(
            Factors(
                nn.Parameter(f.a.detach().double()), nn.Parameter(f.b.detach().double()), f.scale
            )
            for f in one.factors
        ),
    )
    held = Protection(protection.fisher, {"w": protection.anchor["w"].to(torch.bfloat16)})
    add_lowrank_gradient([rounded], held, 1.0)
    add_lowrank_gradient([double], wide, 1.0)
    for found, wanted in zip(gradients(rounded), gradients(double), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
