"""Rows that a router sends to experts are squared per expert and example, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.reference import reference
from tests.fisher.zoo import ZOO, build, ragged

WIDTH, EXPERTS, TOP, CLASSES = 8, 4, 2, 5  # grouped products want strides of 16 bytes
MIXTURES = ("Mixtral", "Qwen3Moe", "DeepseekV3", "GraniteMoe")


def batch(size: int = 4, length: int = 6) -> Batch:
    random = torch.Generator().manual_seed(size)
    x = torch.randn(size, length, WIDTH, generator=random)
    labels = torch.randint(CLASSES, (size, length), generator=random)
    return Batch({"x": x}, labels, tuple(f"{size}-{index}" for index in range(size)))


class Mixture(nn.Module):
    """A router, experts in one tensor with biases, a head; `choose` is the part that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))
        self.biases = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.first(x).reshape(-1, WIDTH)
        weights, chosen = self.router(flat).softmax(-1).topk(self.top(), dim=-1)
        mixed = self.mix(flat, weights, chosen)
        logits: Tensor = self.head((flat + mixed).view_as(x))
        return logits

    def top(self) -> int:
        return TOP

    def mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        raise NotImplementedError


class ByLoop(Mixture):
    def mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mixed = torch.zeros_like(flat)
        for expert in range(EXPERTS):
            rows, place = torch.where(chosen == expert)
            out = torch.tanh(flat[rows] @ self.experts[expert] + self.biases[expert])
            mixed.index_add_(0, rows, out * weights[rows, place, None])
        return mixed


class ByMask(Mixture):
    """One expert a row, chosen by a mask and put back by it: as many rows as came."""

    def top(self) -> int:
        return 1

    def mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mixed = torch.zeros_like(flat)
        for expert in range(EXPERTS):
            mask = chosen[:, 0] == expert
            mixed[mask] = F.linear(flat[mask], self.experts[expert]) * weights[mask]
        return mixed


class Grouped(Mixture):
    """Rows sorted by expert and multiplied at once, the way of fast implementations."""

    def mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        order = chosen.reshape(-1).argsort()
        ids = chosen.reshape(-1)[order]
        ends = torch.bincount(ids, minlength=EXPERTS).cumsum(0).to(torch.int32)
        out = F.grouped_mm(flat[order // self.top()], self.experts, offs=ends)
        out = torch.tanh(out + self.biases[ids]) * weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return out[back].view(-1, self.top(), WIDTH).sum(1)


class GroupedTopOne(Grouped):
    """As many sorted rows as there are positions: lengths alone tell nothing."""

    def top(self) -> int:
        return 1


class Everywhere(Mixture):
    """Every expert sees every row, scaled by its weight."""

    def mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        share = flat.new_zeros(len(flat), EXPERTS).scatter(1, chosen, weights)
        spread = flat.repeat(EXPERTS, 1) * share.T.reshape(-1, 1)
        return torch.bmm(spread.view(EXPERTS, -1, WIDTH), self.experts).sum(0)


@pytest.mark.parametrize("size", [1, 2, 4, 6])  # 6 rows of 6 positions: the axes look alike
@pytest.mark.parametrize(
    "kind", [ByLoop, ByMask, Grouped, GroupedTopOne, Everywhere], ids=lambda kind: kind.__name__
)
def test_experts_in_one_tensor_are_taken_together(
    kind: Callable[[], Mixture], size: int, distance: Any
) -> None:
    model = kind()
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(batch(size))
    assert accumulator.single_because is None
    found = accumulator.result().diagonal
    exact = torch.float32 if isinstance(model, Grouped) else torch.float64  # it knows no float64
    expected = reference(model, [batch(size)], estimator="empirical", dtype=exact)
    assert distance(found, expected) < 1e-5


def test_an_expert_that_no_row_reaches_has_a_measured_zero(distance: Any) -> None:
    model = ByLoop()
    with torch.no_grad():
        model.router.bias[2] = -1e4
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(batch())
    result = accumulator.result()
    assert not result.diagonal["experts"][2].any()
    assert bool((result.diagonal["experts"][[0, 1, 3]] > 0).any())
    assert "experts" not in result.missing
    expected = reference(model, [batch()], estimator="empirical")
    assert distance(result.diagonal, expected) < 1e-5


def test_only_experts_are_counted_where_nothing_before_them_is(distance: Any) -> None:
    model = GroupedTopOne()
    accumulator = Accumulator(model, estimator="empirical", include=lambda n: n == "experts")
    accumulator.add(batch())
    assert accumulator.single_because is None
    expected = reference(model, [batch()], estimator="empirical", dtype=torch.float32)
    assert distance(accumulator.result().diagonal, {"experts": expected["experts"]}) < 1e-5


@pytest.mark.parametrize("family", MIXTURES)
def test_the_default_implementation_of_transformers_is_taken_together(
    family: str, distance: Any
) -> None:
    architecture = next(a for a in ZOO if a.family == family)
    model: Any = build(architecture)
    model.set_experts_implementation("grouped_mm")
    rows = ragged(architecture)
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(rows)
    assert accumulator.single_because is None
    model.set_experts_implementation("eager")
    expected = reference(model, [rows], estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5
