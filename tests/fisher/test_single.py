"""Models whose rows cannot go together are noticed, and their result is exact all the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.errors import GraphError
from fisher.reference import reference

WIDTH, CLASSES, VOCABULARY = 6, 4, 20


def batch(size: int = 4, length: int = 5, *, per_position: bool = True, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (size, length), generator=random)
    shape = (size, length) if per_position else (size,)
    labels = torch.randint(CLASSES, shape, generator=random)
    return Batch({"ids": ids}, labels, tuple(f"{seed}-{index}" for index in range(size)))


class Base(nn.Module):
    """Embedding, something in between, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.between(self.embed(ids)))
        return logits


class UsedTwice(Base):
    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.tanh(self.inner(x))))


class TimeFirst(Base):
    """(T, B, d) inside: a leading axis that is not the example."""

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1)


class TimeFirstFlat(Base):
    """(T * B, d) inside: as many leading rows as expected, in another order."""

    def between(self, x: Tensor) -> Tensor:
        flat = self.inner(x.transpose(0, 1).reshape(-1, WIDTH))
        return torch.tanh(flat).reshape(x.shape[1], x.shape[0], WIDTH).transpose(0, 1)


class RoutedApart(Base):
    """Rows that are put back where they do not belong, as many as there are."""

    def between(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        chosen = flat[:, 0].argsort()
        added = torch.zeros_like(flat).index_add(0, chosen, torch.tanh(self.inner(flat)))
        return (flat + added).view_as(x)


class Sorted(Base):
    """Examples in an order of their own."""

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x.sort(0).values))


class Mixing(Base):
    """Examples that see each other: only a row alone has a gradient of its own."""

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x + x.mean(0, keepdim=True)))


class Recurrent(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(WIDTH, WIDTH, batch_first=True)  # type: ignore[assignment]

    def between(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)[0]
        return y


class Chosen(Base):
    """A parameter of which a part is used, through a mask."""

    def between(self, x: Tensor) -> Tensor:
        chosen = self.inner.weight[torch.arange(WIDTH) % 2 == 0]
        return torch.tanh(nn.functional.linear(x, chosen)).repeat(1, 1, 2)


class Hidden(torch.autograd.Function):
    """Takes a parameter where no torch function shows it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return d @ weight, d.flatten(0, 1).T @ x.flatten(0, 1)


class Opaque(Base):
    def between(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(Hidden.apply(x, self.inner.weight))
        return y


class CastAndReduced(Base):
    """A cast parameter that then enters something unknown."""

    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.inner.weight.to(torch.float64).sum(0).to(x.dtype))


REASONS = {
    UsedTwice: "inner.weight is used more than once",
    TimeFirst: "enters linear",
    TimeFirstFlat: "rows meet before inner.weight",
    RoutedApart: "put into another's",
    Sorted: "regroups rows by their content",
    Mixing: "rows meet before",
    Recurrent: "enters .*lstm",
    Chosen: "inner.weight enters .*getitem",
    Opaque: "inner.weight enters something unseen",
    CastAndReduced: "inner.weight enters .*sum",
}


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_what_cannot_be_taken_together_is_taken_singly(
    kind: Callable[[], nn.Module], shaken: Any, distance: Any
) -> None:
    model, rows = shaken(kind()), batch()
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(rows)
    accumulator.add(batch(seed=1))
    assert accumulator.single_because is not None
    assert re.search(REASONS[kind], accumulator.single_because)  # type: ignore[index]
    expected = reference(model, [rows, batch(seed=1)], estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5


class Products(Base):
    """Every spelling of an affine layer that is known, and a gain and a bias by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.straight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.twice = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.gain = nn.Parameter(torch.randn(WIDTH))
        self.shifted_gain = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.scalar = nn.Parameter(torch.randn(()))
        self.norm = nn.LayerNorm(WIDTH)
        self.rms = nn.RMSNorm(WIDTH)
        self.positions = nn.Embedding(9, WIDTH)

    def between(self, x: Tensor) -> Tensor:
        x = x + self.positions(torch.arange(x.shape[1]).unsqueeze(0))
        x = self.norm(self.inner(x)) @ self.turned.T + self.bias
        x = self.rms(torch.tanh(x @ self.straight)) * self.gain
        x = (1.0 + self.shifted_gain) * torch.matmul(x, self.twice.t().t())
        return torch.tanh(x * self.scalar)


@pytest.mark.parametrize("size", [1, 2, 5])  # 5 rows of 5 positions: the axes look alike
def test_known_operations_are_taken_together_however_they_are_spelled(
    size: int, shaken: Any, distance: Any
) -> None:
    model, rows = shaken(Products()), batch(size)
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(rows)
    assert accumulator.single_because is None
    expected = reference(model, [rows], estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5


@pytest.mark.parametrize("padding_idx", [3, -1])
def test_the_padding_row_of_an_embedding_has_no_gradient_as_in_torch(
    padding_idx: int, shaken: Any, distance: Any
) -> None:
    model, rows = shaken(Base()), batch(size=8)
    model.embed.padding_idx = padding_idx
    row = padding_idx % VOCABULARY
    assert bool((rows.inputs["ids"] == row).any())
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(rows)
    found = accumulator.result().diagonal
    assert not found["embed.weight"][row].any()
    assert distance(found, reference(model, [rows], estimator="empirical")) < 1e-5


def test_a_classifier_whose_layers_see_one_position_per_row(shaken: Any, distance: Any) -> None:
    class Pooled(Base):
        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.between(self.embed(ids).mean(1)))
            return logits

    model, rows = shaken(Pooled()), batch(per_position=False)
    for estimator in ("exact", "empirical"):
        accumulator = Accumulator(model, estimator=estimator)
        accumulator.add(rows)
        assert accumulator.single_because is None
        expected = reference(model, [rows], estimator=estimator)
        assert distance(accumulator.result().diagonal, expected) < 1e-5


class Later(Base):
    """Mixes examples, but not in short rows."""

    def between(self, x: Tensor) -> Tensor:
        return super().between(x.sort(0).values if x.shape[1] > 5 else x)


def test_a_model_that_starts_to_regroup_later_is_taken_singly_from_then_on(
    shaken: Any, distance: Any
) -> None:
    model, batches = shaken(Later()), [batch(), batch(length=7, seed=1), batch(seed=2)]
    accumulator = Accumulator(model, estimator="empirical")
    reasons = []
    for rows in batches:
        accumulator.add(rows)
        reasons.append(accumulator.single_because is not None)
    assert reasons == [False, True, True]
    expected = reference(model, batches, estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5


def test_a_use_that_hides_until_after_the_probe_is_an_error_not_a_wrong_number(
    shaken: Any,
) -> None:
    class Turncoat(Base):
        def between(self, x: Tensor) -> Tensor:
            kind = Opaque if x.shape[1] > 5 else Base
            return kind.between(self, x)  # type: ignore[arg-type]

    accumulator = Accumulator(shaken(Turncoat()), estimator="empirical")
    accumulator.add(batch())
    with pytest.raises(GraphError, match=r"inner\.weight"):
        accumulator.add(batch(length=7))


def test_rows_described_by_many_numbers_are_not_cut_to_be_looked_at(distance: Any) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(40, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.first(x)))
            return logits

    rows = Batch({"x": torch.randn(5, 40)}, torch.arange(5) % CLASSES, tuple("abcde"))
    model = Plain()
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(rows)
    assert accumulator.single_because is None
    expected = reference(model, [rows], estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5
