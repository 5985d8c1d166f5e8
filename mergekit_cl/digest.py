"""What identifies tensors and checkpoints: blake3, independent of files, shards and machines."""

from __future__ import annotations

import json
from collections.abc import Iterable

from blake3 import blake3

PIECE_BYTES = 16 * 2**20


def tensor_digest(pieces: Iterable[bytes]) -> str:
    """Digest of a tensor from the 32-byte blake3 digests of its 16 MiB pieces, in order.

    Pieces hash independently, so one tensor hashes on many threads.
    """
    return blake3(b"".join(pieces)).hexdigest()


def weights_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Digest of a whole checkpoint from (name, dtype, shape, tensor digest) of every tensor.

    One line of JSON per tensor, sorted: neither sharding nor file format enters.
    """
    lines = sorted(
        json.dumps([name, dtype, list(shape), digest], separators=(",", ":"))
        for name, dtype, shape, digest in tensors
    )
    return blake3("\n".join(lines).encode()).hexdigest()


def bytes_digest(content: bytes) -> str:
    """Digest of a small piece of content: a header, a pickle's tail, options as JSON."""
    return blake3(content).hexdigest()
