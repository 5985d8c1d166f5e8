"""What a whole family of merges would cost each parent, from sums over one block.

The loss that a parent's Fisher predicts for weights m is 1/2 sum_i F_i (m_i - p_i)^2. Of weighted
means m = sum_k w_k x_k, sum_k w_k = 1, it is 1/2 w^T Q w with Q_kl = sum_i F_i d_k d_l and
d_k = x_k - p, so K(K+1)/2 sums answer for every w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[np.float64]]


def quadratic_forms(
    inputs: Sequence[torch.Tensor],
    parents: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor | None],
    scratch: Sequence[torch.Tensor],
) -> Array:
    """Q of every parent: (P, K, K) float64; 0 for a parent without a Fisher.

    inputs, parents, fishers: (n,), any float dtype. scratch: K + 2 float64 buffers of (n,). Every
    product is of float64 values.
    """
    import torch

    count = len(inputs)
    found = np.zeros((len(parents), count, count))
    weighted, f, *differences = scratch[: count + 2]
    for number, (parent, fisher) in enumerate(zip(parents, fishers, strict=True)):
        if fisher is None:
            continue
        f.copy_(fisher)
        weighted.copy_(parent)
        for x, d in zip(inputs, differences, strict=True):
            d.copy_(x)
            d.sub_(weighted)
        for k in range(count):
            torch.mul(f, differences[k], out=weighted)
            for other in range(k, count):
                found[number, k, other] = float(torch.dot(weighted, differences[other]))
                found[number, other, k] = found[number, k, other]
    return found


def fisher_squares(
    merged: torch.Tensor,
    parents: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor | None],
    scratch: Sequence[torch.Tensor],
) -> Array:
    """sum_i F_i (m_i - p_i)^2 of one merge against every parent: (P,); 0 where there is no Fisher.

    merged: (n,), any float dtype; parents, fishers: (n,) float64. scratch: 3 float64 buffers of
    (n,).
    """
    import torch

    found = np.zeros(len(parents))
    m, d, product = scratch[:3]
    m.copy_(merged)
    for number, (parent, fisher) in enumerate(zip(parents, fishers, strict=True)):
        if fisher is not None:
            torch.sub(m, parent, out=d)
            torch.mul(fisher, d, out=product)
            found[number] = float(torch.dot(product, d))
    return found
