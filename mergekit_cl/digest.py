"""What identifies tensors and checkpoints: blake3, independent of files, shards and machines."""

from __future__ import annotations

import json
from collections.abc import Iterable

from blake3 import blake3

PIECE_BYTES = 16 * 2**20


class PieceHash:
    """Digests of consecutive 16 MiB pieces of a tensor, fed block by block."""

    def __init__(self) -> None:
        self._hash = blake3()
        self._filled = 0
        self._pieces: list[bytes] = []

    def update(self, block: memoryview) -> None:
        """Add a block; whole ones divide pieces evenly, so none crosses a boundary."""
        self._hash.update(block)
        self._filled += block.nbytes
        if self._filled == PIECE_BYTES:
            self._close()

    def pieces(self) -> list[bytes]:
        """All digests, the last one of what remained."""
        if self._filled:
            self._close()
        return self._pieces

    def _close(self) -> None:
        self._pieces.append(self._hash.digest())
        self._hash = blake3()
        self._filled = 0


def whole_digest(content: memoryview) -> str:
    """Digest of a tensor of at most one piece."""
    return blake3(blake3(content).digest() if content else b"").hexdigest()


def tensor_digest(pieces: Iterable[bytes]) -> str:
    """Digest of a tensor from the 32-byte blake3 digests of its 16 MiB pieces, in order.

    Pieces hash independently, so one tensor hashes on many threads.
    """
    return blake3(b"".join(pieces)).hexdigest()


def weights_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Digest of a whole checkpoint from (name, dtype, shape, tensor digest) of every tensor.

    One line of JSON per tensor, sorted: neither sharding nor file format enters.
    """
    # The JSON of [name, dtype, shape, digest] without spaces; json.dumps would set up an encoder
    # for each, and models have tens of thousands of tensors.
    quoted = json.JSONEncoder().encode
    lines = sorted(
        f'[{quoted(name)},"{dtype}",[{",".join(map(str, shape))}],"{digest}"]'
        for name, dtype, shape, digest in tensors
    )
    return blake3("\n".join(lines).encode()).hexdigest()


def bytes_digest(content: bytes) -> str:
    """Digest of a small piece of content: a header, a pickle's tail, options as JSON."""
    return blake3(content).hexdigest()
