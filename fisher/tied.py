"""The square of a tied weight's gradient, with its cross term, from sparse halves.

A weight that is both embedding and head has, for one example, the gradient H + E: H from the head
is dense (V, d), E from the embedding is zero but in the rows of the tokens seen. Adding their
squares would drop 2 H E, and that is most of E's effect. Elsewhere than in those rows the square is
H^2; so the head leaves these rows out and hands them over, the embedding adds its own, and only
then are they squared. (U, d) numbers per example are kept, U the distinct tokens of the example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def seen(ids: Tensor, padding_idx: int | None) -> Tensor:
    """(U,) the distinct rows of an embedding that one example's ids reach, ascending.

    The row `padding_idx` is left out: its gradient is zero by torch's definition.
    """
    unique: Tensor = torch.unique(ids)
    return unique if padding_idx is None else unique[unique != padding_idx]


def row_sums(ids: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """(U, d) one example's embedding gradient in `rows`: the sum of `gradient` per distinct id.

    ids: (P,). rows: (U,) ascending, as `seen` gives them. gradient: (P, d). Never a (V, d) or
    one-hot tensor; index_put accumulates in a fixed order on every device.
    """
    sums = torch.zeros(len(rows), gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    if not len(rows):
        return sums
    place = torch.searchsorted(rows, ids).clamp_(max=len(rows) - 1)
    kept = rows[place] == ids
    return sums.index_put_((place[kept],), gradient[kept], accumulate=True)


class CrossTerm:
    """Per example, the rows of one weight in which head and embedding meet."""

    def __init__(self, ids: Iterable[Tensor], padding_idx: int | None, like: Tensor) -> None:
        """ids: (P,) per example. like: the (V, d) weight, in the dtype of sums of squares."""
        self.rows = [seen(line, padding_idx) for line in ids]
        self._like = like
        self.clear()

    def clear(self) -> None:
        """Forget what one backward pass brought."""
        width = self._like.shape[1]
        self.gradient = [self._like.new_zeros(len(rows), width) for rows in self.rows]

    def borders(self, step: int) -> list[list[int]]:
        """Per example, where in its `rows` each block of `step` rows of the weight begins."""
        edges = torch.arange(0, len(self._like) + step, step, device=self._like.device)
        return [torch.searchsorted(rows, edges).tolist() for rows in self.rows]

    def take(self, example: int, low: int, high: int, start: int, block: Tensor) -> None:
        """Move rows `low:high` of the shared ones out of `block`, the head's rows from `start`."""
        if low < high:
            local = self.rows[example][low:high] - start
            self.gradient[example][low:high] += block[local]
            block[local] = 0

    def add(self, example: int, ids: Tensor, gradient: Tensor) -> None:
        """Add the embedding's gradient (P, d) at `ids` (P,)."""
        self.gradient[example] += row_sums(ids, self.rows[example], gradient)

    def sums(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per example: the rows (U,) and the whole gradient (U, d) there."""
        return zip(self.rows, self.gradient, strict=True)
