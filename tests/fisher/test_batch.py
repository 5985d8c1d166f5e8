"""Row ids made from content."""

from __future__ import annotations

import pytest
import torch

from fisher import Batch, estimate
from fisher.errors import BatchError


def test_rows_without_ids_get_those_of_their_content() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    one, other = Batch({"x": x}, torch.zeros(3)), Batch({"x": x.flip(0)}, torch.ones(3))
    assert one.row_ids == other.row_ids[::-1]
    assert one.row_ids[0] == one.row_ids[2] != one.row_ids[1]
    assert len(set(one.row_ids) | set(Batch({"y": x}, torch.zeros(3)).row_ids)) == 4
    half = Batch({"x": x.to(torch.bfloat16)}, torch.zeros(3)).row_ids
    assert not set(half) & set(one.row_ids)


def test_labels_drawn_for_them_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3), torch.randn(6, 4), torch.zeros(6).long()
    whole = estimate(model, [Batch({"input": x}, y)])
    parts = estimate(model, [Batch({"input": x[i : i + 2]}, y[i : i + 2]) for i in (4, 0, 2)])
    torch.testing.assert_close(whole.diagonal, parts.diagonal)


def test_a_batch_whose_tensors_disagree_is_still_refused() -> None:
    with pytest.raises(BatchError, match="the first axis of every tensor is the row"):
        Batch({"x": torch.zeros(3, 1), "y": torch.zeros(2, 1)}, torch.zeros(3))
    with pytest.raises(BatchError, match="at least one row"):
        Batch({"x": torch.zeros(0, 1)}, torch.zeros(0))
