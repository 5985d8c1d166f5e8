"""`clmerge/undo.safetensors`: what turns a merged checkpoint into its base without the base.

A safetensors file of bytes: `tensor/NAME` holds frames of planes.py, `file/NAME` a companion's
content. Its metadata say of each tensor whether the frames are the XOR with the merged bits, or the
base's bits as they are, since dtype or shape changed.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.checkpoint.header import read_header, serialize
from mergekit_cl.lora.planes import FRAME, pack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "undo.safetensors"
KEY = "clmerge.undo"
FORMAT = "clmerge.undo/1"
TENSOR, COMPANION = "tensor/", "file/"
PIECE = 2**22


class Written(NamedTuple):
    """nbytes: of the file. digest: blake3 of what is behind its header, and then of the header."""

    nbytes: int
    digest: str


def undo_digest(path: Path) -> str:
    """The digest that `write_undo` gave of a file; raises FormatError where its header is bad."""
    from blake3 import blake3

    digest = blake3()
    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size, str(path))
        stream.seek(len(header.raw))
        while piece := stream.read(PIECE):
            digest.update(piece)
    digest.update(header.raw)
    return digest.hexdigest()


def write_undo(
    path: Path,
    base: Checkpoint,
    merged: Checkpoint,
    names: list[str],
    files: Mapping[str, Path],
    *,
    weights_digest: str,
) -> Written:
    """Write the file, one frame after the other.

    names: tensors of the base to keep. files: companions to keep. weights_digest: of the merged
    weights, which it belongs to. Memory: a few frames per core.
    """
    from blake3 import blake3

    stored = {name: _how(base, merged, name) for name in names}
    said = {"format": FORMAT, "weights_digest": weights_digest, "stored": stored}
    metadata = {KEY: json.dumps(said, sort_keys=True), "format": "pt"}
    keys = sorted([*(TENSOR + name for name in names), *(COMPANION + name for name in files)])
    # Sizes are known at the end: room for the header is kept by the longest it could be.
    reserved = len(serialize([(key, "U8", (2**60,)) for key in keys], metadata).raw)
    sizes = dict.fromkeys(keys, 0)
    digest = blake3()
    with path.open("wb") as stream, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        stream.seek(reserved)
        for key in keys:
            name = key.partition("/")[2]
            if key.startswith(COMPANION):
                parts: Iterator[bytes] = iter([files[name].read_bytes()])
            else:
                parts = _frames(pool, base, merged if stored[name] == "xor" else None, name)
            for part in parts:
                stream.write(part)
                digest.update(part)
                sizes[key] += len(part)
        header = serialize([(k, "U8", (n,)) for k, n in sizes.items()], metadata, length=reserved)
        stream.seek(0)
        stream.write(header.raw)
    digest.update(header.raw)
    return Written(header.file_bytes, digest.hexdigest())


def _how(base: Checkpoint, merged: Checkpoint, name: str) -> str:
    now, then = merged.tensors.get(name), base.tensors[name]
    return "xor" if now and (now.dtype, now.shape) == (then.dtype, then.shape) else "whole"


def _frames(
    pool: ThreadPoolExecutor, base: Checkpoint, merged: Checkpoint | None, name: str
) -> Iterator[bytes]:
    info = base.tensors[name]
    planes = itemsize(info.dtype)
    waiting: deque[Future[bytes]] = deque()
    ahead = 2 * (os.cpu_count() or 1)

    def frame(start: int) -> Callable[[], bytes]:
        return lambda: pack(_bits(base, merged, name, start), planes)

    for start in range(0, info.numel, FRAME):
        waiting.append(pool.submit(frame(start)))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _bits(base: Checkpoint, merged: Checkpoint | None, name: str, start: int) -> NDArray[np.uint8]:
    stop = min(start + FRAME, base.tensors[name].numel)
    bits = bytes_of(base, name, start, stop)
    return bits if merged is None else bits ^ bytes_of(merged, name, start, stop)


def bytes_of(checkpoint: Checkpoint, name: str, start: int, stop: int) -> NDArray[np.uint8]:
    """The bytes of some elements, a copy."""
    import torch

    stored = checkpoint.read(name, start, stop).contiguous().view(torch.uint8)
    found: NDArray[np.uint8] = stored.numpy().copy()
    checkpoint.release(name, start, stop)
    return found
