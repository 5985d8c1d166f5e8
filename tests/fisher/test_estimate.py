"""What the numbers mean: the definition, worked out by hand on models small enough for it."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.batch import IGNORE, UNKNOWN, Batch
from fisher.errors import BatchError, EstimatorError
from fisher.estimation import estimate
from fisher.reference import reference


class Logistic(nn.Module):
    """softmax(W x): its per-example gradient is (p - onehot(y)) x^T."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


def data(size: int = 16) -> Batch:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(size, 4, generator=random)
    labels = torch.randint(3, (size,), generator=random)
    return Batch({"x": x}, labels, tuple(map(str, range(size))))


def by_hand(model: Logistic, batch: Batch) -> tuple[Any, Any, Any]:
    """(p, x, squares of each example's gradient at its label) in float64 numpy."""
    x = batch.inputs["x"].double().numpy()
    z = x @ model.layer.weight.detach().double().numpy().T
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    gradient = (p - np.eye(3)[batch.labels.numpy()])[:, :, None] * x[:, None, :]
    return p, x, gradient**2


def test_empirical_is_the_mean_square_and_not_the_square_of_the_mean() -> None:
    model, batch = Logistic(), data()
    found = estimate(model, [batch], estimator="empirical").diagonal["layer.weight"]
    _, _, squares = by_hand(model, batch)
    np.testing.assert_allclose(found.numpy(), squares.mean(0), rtol=1e-5)
    loss = nn.functional.cross_entropy(model(**batch.inputs), batch.labels)
    (mean,) = torch.autograd.grad(loss, [model.layer.weight])
    assert float(mean.square().sum()) < 0.2 * float(found.sum())


def test_exact_is_the_expectation_over_the_models_own_classes() -> None:
    model, batch = Logistic(), data()
    found = estimate(model, [batch], estimator="exact").diagonal["layer.weight"]
    p, x, _ = by_hand(model, batch)
    # E_y (p_c - 1[y=c])^2 = p_c (1 - p_c)
    expected = ((p * (1 - p))[:, :, None] * (x**2)[:, None, :]).mean(0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_mc_is_unbiased_for_exact_and_draws_are_averaged() -> None:
    model, batch = Logistic(), data()
    p, x, _ = by_hand(model, batch)
    draws = 2000
    found = estimate(model, [batch], draws=draws).diagonal["layer.weight"].numpy()
    square = x[:, None, :] ** 2
    mean = (p * (1 - p))[:, :, None] * square
    second = (p * (1 - p) * ((1 - p) ** 3 + p**3))[:, :, None] * square**2
    error = np.sqrt((second - mean**2).sum(0) / draws) / len(batch)
    assert (np.abs(found - mean.mean(0)) < 4.5 * error).all()


def test_another_seed_draws_other_labels_and_the_same_seed_the_same() -> None:
    model, batch = Logistic(), data()
    one, same, other = (
        estimate(model, [batch], seed=seed).diagonal["layer.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_a_sequence_is_one_example_whose_positions_add_before_squaring(
    build: Any, rows: Any
) -> None:
    model, batch = build("llama").eval(), rows(lengths=(6,))
    logits = model(**batch.inputs).logits[0, :5]
    nll = nn.functional.cross_entropy(logits, batch.labels[0, :5], reduction="sum")
    (gradient,) = torch.autograd.grad(nll, [model.lm_head.weight])
    found = estimate(model, [batch], estimator="empirical")
    torch.testing.assert_close(
        found.diagonal["lm_head.weight"], gradient.square(), rtol=1e-4, atol=1e-9
    )
    assert (found.examples, found.tokens) == (1, 5)
    assert found.mean_nll == pytest.approx(nll.item() / 5, rel=1e-6)


def test_mean_nll_is_nats_per_token_where_the_true_label_is_known(build: Any, rows: Any) -> None:
    model, batch = build("gpt2").eval(), rows()
    labels = batch.labels.clone()
    labels[1, :4] = UNKNOWN
    found = estimate(model, [Batch(batch.inputs, labels, batch.row_ids)])
    flat = labels.flatten()
    keep = (flat != IGNORE) & (flat != UNKNOWN)
    logits = model(**batch.inputs).logits.flatten(0, 1)[keep].double()
    expected = nn.functional.cross_entropy(logits, flat[keep])
    assert found.mean_nll == pytest.approx(expected.item(), rel=1e-6)
    assert found.tokens == batch.tokens > int(keep.sum())
    nobody = torch.where(labels == IGNORE, IGNORE, UNKNOWN)
    assert estimate(model, [Batch(batch.inputs, nobody, batch.row_ids)]).mean_nll is None


@pytest.mark.parametrize("kind", ["tied llama", "bert", "mixtral"])
def test_the_standard_error_is_that_of_each_tensors_sum_over_examples(
    build: Any, rows: Any, split: Any, kind: str
) -> None:
    model, batch = build(kind), rows(kind)
    found = estimate(model, split(batch, 2), estimator="empirical")
    each = [reference(model, [batch.row(i)], estimator="empirical") for i in range(len(batch))]
    for name, error in found.standard_error.items():
        traces = np.array([float(diagonal[name].sum()) for diagonal in each])
        assert error is not None
        expected = traces.std(ddof=1) / math.sqrt(len(traces))
        assert error == pytest.approx(expected, rel=1e-4, abs=1e-12), name
    alone = estimate(model, [batch.row(0)], estimator="empirical")
    assert set(alone.standard_error.values()) == {None}


def test_reached_but_unused_is_a_measured_zero(build: Any, rows: Any) -> None:
    batch = rows("mixtral", lengths=(3,))
    found = estimate(build("mixtral"), [batch]).diagonal
    experts = found["model.layers.0.mlp.experts.down_proj"].flatten(1).sum(1)
    assert bool((experts == 0).any())
    assert bool((experts > 0).any())
    seen = batch.inputs["input_ids"].unique()
    rest = torch.ones(61, dtype=torch.bool)
    rest[seen] = False
    assert not found["model.embed_tokens.weight"][rest].any()
    assert bool((found["model.embed_tokens.weight"].sum(1) > 0).any())


def test_a_loss_of_ones_own_is_squared_per_example() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.slope(x).squeeze(1)
            return y

    def squared_error(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch.inputs["x"]) - batch.labels).square()

    model, batch = Line(), data()
    found = estimate(model, [batch], estimator="empirical", loss=squared_error)
    x = batch.inputs["x"].double().numpy()
    w = model.slope.weight.detach().double().numpy()
    residual = (x @ w.T)[:, 0] - batch.labels.numpy()
    expected = ((2 * residual[:, None] * x) ** 2).mean(0, keepdims=True)
    np.testing.assert_allclose(found.diagonal["slope.weight"].numpy(), expected, rtol=1e-5)
    assert found.mean_nll is None
    with pytest.raises(EstimatorError, match=r"one number per example, not of shape \(\)"):
        estimate(
            model, [batch], estimator="empirical", loss=lambda m, b: squared_error(m, b).mean()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "adam"}, "none of mc, exact, empirical"),
        ({"draws": 0}, "at least 1"),
        ({"draws": 2, "estimator": "exact"}, "labels that mc draws"),
        ({"loss": lambda model, batch: batch.labels, "estimator": "mc"}, "use empirical"),
        ({"frozen": ["nobody"]}, "no such parameter to call frozen: nobody"),
        ({"include": lambda name: False}, "no parameter is left"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EstimatorError, match=message):
        Accumulator(Logistic(), **options)


def test_rows_that_do_not_fit_the_model_are_refused() -> None:
    model, batch = Logistic(), data(2)
    with pytest.raises(BatchError, match="label 3 is not one of the 3 classes"):
        Accumulator(model).add(Batch(batch.inputs, torch.tensor([0, 3]), batch.row_ids))
    with pytest.raises(BatchError, match=r"logits of shape \(2, 3\)"):
        Accumulator(model).add(Batch(batch.inputs, torch.zeros(2, 4).long(), batch.row_ids))
    x = batch.inputs["x"].clone()
    x[1] = math.nan
    with pytest.raises(BatchError, match="row 1 are not finite"):
        Accumulator(model).add(Batch({"x": x}, batch.labels, batch.row_ids))
    with pytest.raises(BatchError, match="a regression has no class"):
        Accumulator(Logistic(classes=1)).add(
            Batch(batch.inputs, torch.zeros(2).long(), batch.row_ids)
        )
    with pytest.raises(BatchError, match="no example was added"):
        Accumulator(model).result()


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, fisher\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert all(getattr(fisher, name) for name in fisher.__all__)\n"
        "assert callable(fisher.estimate) and 'estimate' in dir(fisher)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_finishing_gives_the_same_numbers_in_the_memory_of_the_sums() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    batch = Batch({"input": torch.randn(5, 3)}, torch.arange(5) % 4)
    one, two = Accumulator(model, draws=3), Accumulator(model, draws=3)
    for accumulator in (one, two):
        accumulator.add(batch)
    places = {tensor.data_ptr() for tensor in two.state()[0].values()}
    kept, finished = one.result(), two.finish()
    assert kept.diagonal.keys() == finished.diagonal.keys()
    for name, tensor in finished.diagonal.items():
        assert torch.equal(kept.diagonal[name], tensor)
        assert tensor.data_ptr() in places
    assert finished.standard_error == kept.standard_error
    assert two.relative_error() == one.relative_error()
