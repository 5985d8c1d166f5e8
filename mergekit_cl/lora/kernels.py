"""What edits do to one block of a tensor: pure functions on flat float64 blocks.

A block is a run of elements that may begin and end within a row. `Window` says where a matrix lies
in the tensor; `pieces` cuts the part of it that a block has into at most three rectangles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Window(NamedTuple):
    """A matrix of `rows` x `columns` stored row by row from element `begin` of a tensor on."""

    begin: int
    rows: int
    columns: int


class Piece(NamedTuple):
    """A rectangle of a window: rows and columns [from, to), and its elements of the block."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    within: tuple[int, int]


class Panel(NamedTuple):
    """A product that is added to a window. left: (rows, r). right: (r, columns). Both float64."""

    window: Window
    left: torch.Tensor
    right: torch.Tensor


def pieces(window: Window, start: int, stop: int) -> Iterator[Piece]:
    """The part of a window in the block of elements `start` to `stop`, in reading order.

    A cut row, whole rows, a cut row; none where the block lies beside the window.
    """
    columns = window.columns
    first = max(start - window.begin, 0)
    last = min(stop - window.begin, window.rows * columns)
    shift = window.begin - start
    while first < last:
        row, column = divmod(first, columns)
        whole = (last - first) // columns
        if column == 0 and whole:
            rows, width = (row, row + whole), (0, columns)
        else:
            rows, width = (row, row + 1), (column, min(columns, column + last - first))
        end = first + (rows[1] - rows[0]) * (width[1] - width[0])
        yield Piece(rows, width, (first + shift, end + shift))
        first = end


def view(block: torch.Tensor, piece: Piece) -> torch.Tensor:
    """A piece's elements of a block, (rows, columns)."""
    return block[piece.within[0] : piece.within[1]].view(piece.rows[1] - piece.rows[0], -1)


def add_panel(
    block: torch.Tensor, start: int, panel: Panel, scratch: Sequence[torch.Tensor]
) -> None:
    """block += left @ right, as far as the panel's window lies in the block.

    scratch: two of the block's size. The block begins at element `start`. Sums go through the rank
    in order, each product and each sum rounded on its own: a library's matrix product adds in an
    order that depends on processor, device and shape.
    """
    import torch

    for piece in pieces(panel.window, start, start + block.numel()):
        left = panel.left[piece.rows[0] : piece.rows[1]]
        right = panel.right[:, piece.columns[0] : piece.columns[1]]
        total, product = (view(buffer, piece) for buffer in scratch[:2])
        torch.mul(left[:, :1], right[:1], out=total)
        for k in range(1, len(right)):
            torch.mul(left[:, k : k + 1], right[k : k + 1], out=product)
            total.add_(product)
        view(block, piece).add_(total)


def scale_rows(block: torch.Tensor, start: int, window: Window, factors: torch.Tensor) -> None:
    """Every row of a window times its factor; factors: (rows,)."""
    for piece in pieces(window, start, start + block.numel()):
        view(block, piece).mul_(factors[piece.rows[0] : piece.rows[1]].unsqueeze(1))


def scale_columns(block: torch.Tensor, start: int, window: Window, factors: torch.Tensor) -> None:
    """Every column of a window times its factor; factors: (columns,)."""
    for piece in pieces(window, start, start + block.numel()):
        view(block, piece).mul_(factors[piece.columns[0] : piece.columns[1]])


def add_squares(
    sums: torch.Tensor, block: torch.Tensor, start: int, window: Window, *, by_row: bool
) -> None:
    """sums += squares of a block's elements, per row or per column of the window."""
    for piece in pieces(window, start, start + block.numel()):
        squares = view(block, piece).square()
        if by_row:
            sums[piece.rows[0] : piece.rows[1]] += squares.sum(1)
        else:
            sums[piece.columns[0] : piece.columns[1]] += squares.sum(0)


def set_rows(
    block: torch.Tensor, start: int, window: Window, rows: Sequence[int], values: torch.Tensor
) -> None:
    """Some rows of a window become given values.

    rows: their numbers, each once. values: (rows, columns).
    """
    for piece in pieces(window, start, start + block.numel()):
        first, last = piece.rows
        for place, row in enumerate(rows):
            if first <= row < last:
                found = values[place, piece.columns[0] : piece.columns[1]]
                view(block, piece)[row - first] = found
