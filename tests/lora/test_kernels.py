"""Blocks of a tensor, wherever they begin, get what the whole tensor would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.lora import compiled
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
    chosen, values = [4, 0], random(2, 7)
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
        add_panel(block, start, Panel(window, left, right), list(torch.empty(2, length).double()))
        add_squares(by_row, block, start, window, by_row=True)
        add_squares(by_column, block, start, window, by_row=False)
        scale_rows(block, start, window, rows)
        scale_columns(block, start, window, columns)
        set_rows(block, start, window, chosen, values)
    np.testing.assert_allclose(flat.numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(by_row.numpy(), squares[0], rtol=1e-13)
    np.testing.assert_allclose(by_column.numpy(), squares[1], rtol=1e-13)


@settings(deadline=None, max_examples=80)
@given(
    window=st.builds(
        Window, st.integers(0, 9), rows=st.integers(1, 9), columns=st.integers(1, 900)
    ),
    rank=st.integers(1, 11),
    start=st.integers(0, 999),
    length=st.integers(0, 3000),
    seed=st.integers(0, 99),
)
def test_compiled_products_have_the_bits_of_the_reference(
    window: Window, rank: int, start: int, length: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(window.rows, rank, generator=random, dtype=torch.float64)
    right = torch.randn(rank, window.columns, generator=random, dtype=torch.float64)
    left[0, 0], right[0, 0] = 0.0, -0.0
    panel = Panel(window, left, right)
    block = torch.randn(length, generator=random, dtype=torch.float64)
    block[::3] = -0.0
    found = block.clone()
    compiled.add_panel(found, start, panel)
    add_panel(block, start, panel, [torch.empty_like(block) for _ in range(2)])
    assert same_bits(found, block)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_a_product_does_not_depend_on_how_a_tensor_is_cut(rank: int) -> None:
    torch.manual_seed(rank)
    rows, columns = 40, 70
    panel = Panel(
        Window(0, rows, columns),
        torch.randn(rows, rank).double(),
        torch.randn(rank, columns).double(),
    )
    flat = torch.randn(rows * columns).double()
    whole = flat.clone()
    compiled.add_panel(whole, 0, panel)
    for length in (1, 33, 70, 71, 999):
        cut = flat.clone()
        for start in range(0, len(cut), length):
            compiled.add_panel(cut[start : start + length], start, panel)
        assert same_bits(cut, whole)
