"""Machine code in the user's cache: read back only whole, and only where it was made for."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from mergekit_cl.cache import cache_folder


def folder() -> Path:
    """Where it is kept. Raises RuntimeError where nobody knows the user's home."""
    return cache_folder() / "native"


def read(name: str) -> bytes | None:
    """What was kept under a name; None where there is nothing or not all of it."""
    try:
        raw = (folder() / name).read_bytes()
    except (OSError, RuntimeError):
        return None
    digest, content = raw[:32], raw[32:]
    return content if blake3(content).digest() == digest else None


def keep(name: str, content: bytes) -> None:
    """Keep it for other processes, if the cache can be written; without it they compile again."""
    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as stream:
            stream.write(blake3(content).digest() + content)
        Path(stream.name).replace(folder() / name)
