"""Bits in byte planes, deflated: small where they are the XOR of two tensors that nearly agree.

A tensor is a run of frames of `FRAME` elements. A frame is the compressed length of each plane (4
bytes, little-endian), then the planes: plane k has byte k of every element.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAME = 2**17
"""Elements. A multiple of it is what a merge reads at once."""

LENGTH = 4
"""Bytes that say how long a plane is."""


def pack(bits: NDArray[np.uint8], planes: int) -> bytes:
    """A frame of elements of `planes` bytes each.

    Runs and byte frequencies are all there is to find in such planes: full matching is 4 times
    slower and no smaller.
    """
    columns = bits.reshape(-1, planes)
    packed = [_deflated(columns[:, k].tobytes()) for k in range(planes)]
    return struct.pack(f"<{planes}I", *map(len, packed)) + b"".join(packed)


def unpack(frame: bytes, planes: int, count: int) -> NDArray[np.uint8]:
    """The bytes of `count` elements; raises ValueError where the frame is damaged."""
    import numpy as np

    bits = np.empty((count, planes), dtype=np.uint8)
    position = LENGTH * planes
    for k, length in enumerate(lengths(frame, planes)):
        try:
            plane = zlib.decompress(frame[position : position + length])
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(plane) != count:
            raise ValueError(f"{len(plane)} elements where {count} should be")
        bits[:, k] = np.frombuffer(plane, dtype=np.uint8)
        position += length
    return bits.reshape(-1)


def lengths(head: bytes, planes: int) -> tuple[int, ...]:
    """Compressed bytes of each plane, from a frame's first bytes; ValueError where cut off."""
    if len(head) < LENGTH * planes:
        raise ValueError("it ends inside a frame")
    return struct.unpack_from(f"<{planes}I", head)


def _deflated(plane: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return packer.compress(plane) + packer.flush()
