"""Any model's per-example gradient: one row, one backward pass, torch's own autograd."""

from __future__ import annotations

from fisher.counted import Counted
from fisher.squares.sums import Sums


def collect(counted: Counted, sums: Sums) -> None:
    """Move one example's gradients from `.grad`, which is cleared, into the sums of squares.

    A parameter without a gradient was not reached: its square is 0.
    """
    for name, group in counted.parameters.items():
        gradients = [p.grad for p in group if p.grad is not None]
        for parameter in group:
            parameter.grad = None
        if gradients:
            whole = gradients[0]
            for other in gradients[1:]:
                whole = whole + other
            sums.whole(name, whole.to_dense() if whole.is_sparse else whole)
