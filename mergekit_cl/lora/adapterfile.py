"""`adapter_model.safetensors`, written one tensor after the other, their ranks not known before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mergekit_cl.checkpoint.header import serialize

METADATA = {"format": "pt"}
LARGEST = 2**31
"""Stands for each length until it is known: no header is longer than with these."""


class AdapterFile:
    """An open file; `order` says in which order its tensors have to come.

    tensors: (name, dtype, dimensions) of each.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, str, int]]) -> None:
        longest = serialize([(n, dtype, (LARGEST,) * k) for n, dtype, k in tensors], METADATA)
        self.order = [tensor.name for tensor in longest.tensors]
        self._reserved = len(longest.raw)
        self._dtypes = {name: dtype for name, dtype, _ in tensors}
        self._written: list[tuple[str, str, tuple[int, ...]]] = []
        self._stream: BinaryIO = path.open("wb")
        self._stream.seek(self._reserved)

    def append(self, name: str, shape: tuple[int, ...], content: memoryview) -> None:
        """Write the next tensor; one that `order` names may be left out."""
        self._stream.write(content)
        self._written.append((name, self._dtypes[name], shape))

    def finish(self) -> int:
        """Write the header; returns the bytes of the file."""
        header = serialize(self._written, METADATA, length=self._reserved)
        self._stream.seek(0)
        self._stream.write(header.raw)
        return header.file_bytes

    def __enter__(self) -> AdapterFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stream.close()
