"""Streams that might have been: blocks of a series put together at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resampled(
    values: NDArray[np.float64],
    streams: int,
    rows: int,
    block: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """(streams, rows) made of blocks of `block` successive values, each starting anywhere.

    What successive values have in common stays within a block and is lost between two. Source:
    Künsch 1989 (moving blocks).
    """
    blocks = -(-rows // block)
    starts = generator.integers(0, len(values) - block + 1, size=(streams, blocks, 1))
    found: NDArray[np.float64] = values[starts + np.arange(block)].reshape(streams, -1)[:, :rows]
    return found
