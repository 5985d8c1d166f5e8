"""A uniform sample of everything seen, without a generator's state.

Each row has a fixed key, a hash of the seed and the row's id; the sample is the rows with the k
smallest keys. A row beyond the k smallest of some rows is beyond them of more rows too, so what was
dropped is never missed, and the sample is a function of the set of rows alone: the same in any
order, after a resume, and from the samples of several processes.

Source: bottom-k sampling (Cohen and Kaplan 2007); Vitter 1985 for the sample it equals in law.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

KEY_BITS = 128


def keyed(seed: int, *parts: object) -> int:
    """A number below 2^128, uniform and independent for every (seed, parts): blake2b of them."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=KEY_BITS // 8).digest(), "big")


def distinct_seen(keys: Sequence[int], capacity: int) -> float:
    """How many different rows were seen: exact while they all fit, else estimated.

    keys: those kept, ascending. With u_k the k-th smallest of n uniform numbers, (k - 1) / u_k has
    the mean n and a relative standard error below 1 / sqrt(k - 2) (Beyer et al. 2007).
    """
    if len(keys) < max(capacity, 2):
        return float(len(keys))
    return (len(keys) - 1) * 2.0**KEY_BITS / keys[-1]
