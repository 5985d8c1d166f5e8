"""The square of embedding plus head keeps its cross term, from sparse halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fisher.accumulator import Accumulator
from fisher.reference import reference
from fisher.squares import sums as sums_module
from fisher.squares.sums import Sums
from fisher.tied import CrossTerm, row_sums, seen


def test_dropping_the_cross_term_would_be_seen(build: Any, rows: Any) -> None:
    model, batch = build("tied llama"), rows()
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(batch)
    name = "model.embed_tokens.weight"
    found = accumulator.result().diagonal[name].double()
    right = reference(model, [batch], estimator="empirical")[name]

    untied = build("llama")
    untied.load_state_dict({**model.state_dict(), "lm_head.weight": model.lm_head.weight})
    halves = reference(untied, [batch], estimator="empirical")
    wrong = halves[name] + halves["lm_head.weight"]

    assert float((found - right).norm() / right.norm()) < 1e-5
    assert float((wrong - right).norm() / right.norm()) > 1e-2


def test_row_sums_equal_a_dense_scatter_without_the_padding_row() -> None:
    ids = torch.tensor([4, 2, 4, 0, 7, 2])
    gradient = torch.randn(6, 3)
    rows = seen(ids, 0)
    dense = torch.zeros(9, 3).index_add(0, ids, gradient)
    assert rows.tolist() == [2, 4, 7]
    torch.testing.assert_close(row_sums(ids, rows, gradient), dense[[2, 4, 7]])
    assert row_sums(torch.tensor([0, 0]), seen(torch.tensor([0, 0]), 0), gradient[:2]).shape == (
        0,
        3,
    )


@pytest.mark.parametrize("embedding_first", [False, True])
@pytest.mark.parametrize("block", [1, 7, 20, 2**18])
def test_blocks_and_order_of_arrival_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, block: int, embedding_first: bool
) -> None:
    monkeypatch.setattr(sums_module, "_CPU_BLOCK", block)
    vocabulary, width, size, length = 10, 4, 3, 6
    ids = torch.randint(vocabulary, (size, length))
    d, x = torch.randn(size, length, vocabulary).double(), torch.randn(size, length, width).double()
    e = torch.randn(size, length, width).double()
    weight = torch.zeros(vocabulary, width).double()
    sums = Sums({"w": weight})
    sums.begin(size, {"w": CrossTerm(ids, 3, weight)})
    for _ in range(2):  # two passes: nothing of the first is left in the second
        if embedding_first:
            sums.rows("w", ids, e, 3)
        sums.matrix("w", d, x, False)
        if not embedding_first:
            sums.rows("w", ids, e, 3)
        sums.end_pass()
    sums.end(2)
    whole = d.transpose(1, 2) @ x
    for n in range(size):
        kept = ids[n] != 3
        whole[n].index_add_(0, ids[n][kept], e[n][kept])
    torch.testing.assert_close(sums.square["w"], 2 * whole.square().sum(0))
    torch.testing.assert_close(sums.trace, whole.square().sum().repeat(2))


def test_a_head_whose_embedding_gets_no_gradient_is_not_lost() -> None:
    ids, d, x = torch.tensor([[1, 2]]), torch.randn(1, 2, 5), torch.randn(1, 2, 3)
    sums = Sums({"w": torch.zeros(5, 3)})
    sums.begin(1, {"w": CrossTerm(ids, None, sums.square["w"])})
    sums.matrix("w", d, x, False)
    sums.end_pass()
    torch.testing.assert_close(sums.square["w"], (d[0].T @ x[0]).square())
