"""Blocks of a tensor, wherever they begin, get what the whole tensor would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.lora.kernels import (
    Panel,
    Window,
    add_panel,
    add_squares,
    pieces,
    scale_columns,
    scale_rows,
    set_rows,
)

WINDOWS = st.builds(Window, st.integers(0, 30), rows=st.integers(1, 9), columns=st.integers(1, 9))


@settings(max_examples=200, deadline=None)
@given(WINDOWS, st.integers(0, 60), st.integers(0, 60))
def test_pieces_are_the_elements_of_the_window_in_the_block_each_once(
    window: Window, start: int, length: int
) -> None:
    block = np.zeros(length, dtype=int)
    found = list(pieces(window, start, start + length))
    for piece in found:
        for number in range(piece.within[0], piece.within[1]):
            row, column = divmod(start + number - window.begin, window.columns)
            assert piece.rows[0] <= row < piece.rows[1]
            assert piece.columns[0] <= column < piece.columns[1]
            block[number] += 1
    inside = [
        window.begin <= start + k < window.begin + window.rows * window.columns
        for k in range(length)
    ]
    assert block.tolist() == [int(one) for one in inside]
    assert len(found) <= 3


@pytest.mark.parametrize("length", [1, 5, 7, 13, 100])
def test_changes_of_cut_blocks_are_those_of_the_whole_tensor(length: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    window = Window(3, 6, 7)
    flat = random(3 + 6 * 7 + 4)
    left, right, rows, columns = random(6, 2), random(2, 7), random(6), random(7)
    chosen, values = torch.tensor([4, 0]), random(2, 7)
    expected = flat.numpy().copy()
    matrix = expected[3:45].reshape(6, 7)
    matrix += left.numpy() @ right.numpy()
    squares = (matrix**2).sum(1), (matrix**2).sum(0)
    matrix *= rows.numpy()[:, None]
    matrix *= columns.numpy()
    matrix[[4, 0]] = values.numpy()

    by_row, by_column = torch.zeros(6).double(), torch.zeros(7).double()
    for start in range(0, len(flat), length):
        block = flat[start : start + length]
        add_panel(block, start, Panel(window, left, right))
        add_squares(by_row, block, start, window, by_row=True)
        add_squares(by_column, block, start, window, by_row=False)
        scale_rows(block, start, window, rows)
        scale_columns(block, start, window, columns)
        set_rows(block, start, window, chosen, values)
    np.testing.assert_allclose(flat.numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(by_row.numpy(), squares[0], rtol=1e-13)
    np.testing.assert_allclose(by_column.numpy(), squares[1], rtol=1e-13)
