"""Uniform numbers that belong to a row, not to a moment.

A global generator would give a row other numbers in another batch, order or process. Here the n-th
number of a row is word n of the counter-based Philox 4x64-10 (Salmon et al. 2011) with

    key     (seed, 64 bits of the row id's hash)
    counter (block of four words, draw, 0, 0)

so it can be computed anywhere, alone. numpy promises the raw stream of its bit generators; its
distributions may change between versions, so the words become floats here.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64


def row_key(row_id: str) -> int:
    """64 bits of a row id, whatever its spelling."""
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "little")


def uniforms(seed: int, row_id: str, draw: int, count: int) -> NDArray[np.float64]:
    """The first `count` uniforms of a row for one draw: float64 in [0, 1), multiples of 2^-53."""
    counter = np.array([0, draw, 0, 0], dtype=np.uint64)
    key = np.array([seed % _WORD, row_key(row_id)], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(count)
    mantissas: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64)
    return mantissas * 2.0**-53
