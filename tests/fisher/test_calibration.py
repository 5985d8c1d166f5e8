"""A measured divergence is the exact one, and where a diagonal is right it predicts it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher import estimate
from fisher.batch import IGNORE, Batch
from fisher.calibration import Measured, divergences, kl, predicted
from fisher.errors import BatchError


def moved(model: nn.Module, size: float) -> nn.Module:
    """A copy of the model whose weights differ everywhere."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return other


def by_definition(model: nn.Module, other: nn.Module, row: Batch) -> float:
    """sum over loss positions of sum_y p(y) (log p(y) - log q(y)), both models in float64."""
    with torch.no_grad():
        p, q = (copy.deepcopy(m).double().eval()(**row.inputs).logits for m in (model, other))
    p, q = (x.log_softmax(-1).reshape(-1, x.shape[-1]) for x in (p, q))
    terms = (p.exp() * (p - q)).sum(-1)
    return float(terms[row.labels.reshape(-1) != IGNORE].sum())


@pytest.mark.parametrize("kind", ["tied llama", "gpt2", "mixtral", "bert", "llama classifier"])
def test_the_divergence_is_the_sum_over_positions_that_carry_a_loss(
    build: Any, rows: Any, kind: str
) -> None:
    model, batch = build(kind), rows(kind)
    other = moved(model, 0.05)
    found = divergences(model, other, batch)
    expected = [by_definition(model, other, batch.row(i)) for i in range(len(batch))]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    alone = [float(divergences(model, other, batch.row(i))) for i in range(len(batch))]
    assert found.tolist() == pytest.approx(alone, rel=1e-4)
    assert float(divergences(model, model, batch).sum()) < 1e-12


def test_both_models_are_their_own_again_afterwards(build: Any, rows: Any) -> None:
    model, other = build("tied llama"), build("tied llama").eval()
    next(other.parameters()).requires_grad_(False)
    divergences(model, other, rows())
    assert model.training
    assert not other.training
    assert not next(other.parameters()).requires_grad
    assert all(p.requires_grad for p in model.parameters())


def test_a_class_that_the_model_gives_no_probability_adds_nothing() -> None:
    p, q = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.0, 1.0, -torch.inf]])
    batch = Batch({"x": torch.zeros(1, 1)}, torch.zeros(1).long(), ("a",))
    half = torch.tensor([0.5, 0.5]).double()
    expected = (half * (half.log() - q[0, :2].double().log_softmax(0))).sum()
    assert float(kl(p, q, batch)) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(BatchError, match="row a are not finite"):
        kl(q.new_zeros(1, 3), q, batch)  # infinitely far apart
    with pytest.raises(BatchError, match="differ in shape"):
        kl(p, q[:, :2], batch)


class Softmax(nn.Module):
    """Three classes of which each weight moves the logits of one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.line(x)
        return y


@pytest.mark.parametrize("entry", [(0, 0), (1, 2), (2, 3)])
def test_along_one_small_coordinate_the_diagonal_predicts_the_divergence(
    entry: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    model = Softmax().double()
    batch = Batch({"x": torch.randn(50, 4).double()}, torch.full((50,), -1))
    found = estimate(model, [batch], estimator="exact")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.line.weight[entry] += 0.01
    measured = Measured()
    measured.add(batch, divergences(model, other, batch))
    expected = predicted(found.diagonal, model, other)
    by_hand = float(found.diagonal["line.weight"][entry]) * 0.01**2 / 2
    assert expected == pytest.approx(by_hand, rel=1e-9)
    assert measured.mean == pytest.approx(expected, rel=0.02)


def test_where_weights_move_together_the_diagonal_is_off_by_a_known_factor() -> None:
    """All logits raised alike change nothing: measured is 0, and the diagonal does not know it."""
    model = Softmax().double()
    batch = Batch({"x": torch.ones(2, 4).double()}, torch.zeros(2).long())
    found = estimate(model, [batch], estimator="exact")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.line.weight += 0.1
    assert float(divergences(model, other, batch).sum()) < 1e-12
    assert predicted(found.diagonal, model, other) > 1e-3


def test_the_measured_mean_and_its_standard_error_are_over_examples() -> None:
    batch = Batch({"x": torch.zeros(3, 1)}, torch.tensor([[0, 1], [0, IGNORE], [1, 1]]))
    values = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64)
    found = Measured()
    found.add(batch.row(0), values[:1])
    assert found.standard_error is None
    found.add(Batch({"x": torch.zeros(2, 1)}, batch.labels[1:]), values[1:])
    assert (found.examples, found.tokens, found.mean) == (3, 5, 2.0)
    assert found.standard_error == pytest.approx(float(values.std()) / 3**0.5)
