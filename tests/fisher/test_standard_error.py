"""Standard errors are what drawing the rows anew would show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fisher import Accumulator, Batch, estimate
from fisher.reference import reference


@pytest.mark.parametrize("kind", ["tied llama", "mixtral", "bert"])
@pytest.mark.parametrize("estimator", ["empirical", "mc"])
def test_the_trace_has_the_standard_error_of_a_mean_over_rows(
    build: Any, rows: Any, split: Any, kind: str, estimator: str
) -> None:
    model, batch = build(kind), rows(kind)
    found = estimate(model, split(batch, 2), estimator=estimator, draws=1, seed=3)
    traces = np.array(
        [
            sum(float(t.sum()) for t in one.values())
            for one in (
                reference(model, [batch.row(i)], estimator=estimator, seed=3)
                for i in range(len(batch))
            )
        ]
    )
    expected = traces.std(ddof=1) / math.sqrt(len(traces))
    assert found.trace_standard_error == pytest.approx(expected, rel=1e-4)
    # Tensors of one row rise and fall together: neither their sum nor their root sum of squares.
    parts = [error or 0.0 for error in found.standard_error.values()]
    assert math.hypot(*parts) < expected < sum(parts)


def test_a_bootstrap_over_rows_gives_the_same() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3).double()
    x = (torch.randn(400, 5) * torch.rand(400, 1) * 3).double()
    batch = Batch({"input": x}, torch.zeros(400).long())
    found = estimate(model, [batch], estimator="exact")
    singly = (reference(model, [batch.row(i)], estimator="exact") for i in range(400))
    each = np.array([sum(float(tensor.sum()) for tensor in one.values()) for one in singly])
    generator = np.random.default_rng(0)
    means = each[generator.integers(0, 400, (4000, 400))].mean(1)
    assert found.trace_standard_error == pytest.approx(means.std(), rel=0.05)


def test_the_relative_error_is_that_of_the_trace_and_unknown_for_one_row() -> None:
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3), torch.randn(6, 4), torch.zeros(6).long()
    running = Accumulator(model, estimator="exact")
    running.add(Batch({"input": x[:1]}, y[:1]))
    assert running.relative_error() is None
    assert running.result().trace_standard_error is None
    running.add(Batch({"input": x[1:]}, y[1:]))
    found = running.result()
    trace = sum(float(tensor.sum()) for tensor in found.diagonal.values())
    assert found.trace_standard_error is not None
    assert running.relative_error() == pytest.approx(found.trace_standard_error / trace, rel=1e-6)
