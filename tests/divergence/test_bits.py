from __future__ import annotations

import pytest
import torch

from mergekit_cl.divergence.bits import count_changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bits_are_compared_not_values(dtype: torch.dtype) -> None:
    nan = float("nan")
    a = torch.tensor([1.0, 0.0, nan, 2.0], dtype=dtype)
    b = torch.tensor([1.0, -0.0, nan, 3.0], dtype=dtype)
    assert count_changed(a, b) == 2
    assert count_changed(a[:0], b[:0]) == 0


def test_values_of_different_dtypes_are_compared_exactly() -> None:
    wide = torch.tensor([1.0, 0.1, 2.0**-30 + 1], dtype=torch.float64)
    assert count_changed(wide.to(torch.bfloat16), wide) == 2
    assert count_changed(wide.to(torch.float32), wide.to(torch.bfloat16)) == 1
    assert (
        count_changed(torch.tensor([2.0**24 + 1], dtype=torch.float64), torch.tensor([2.0**24]))
        == 1
    )
