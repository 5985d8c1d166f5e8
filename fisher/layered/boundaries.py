"""Where tensors wait that pass from one layer to the next: in memory, or in files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Boundaries(Protocol):
    """Tensors by shelf (one per layer) and number (one per group of sequences), on the CPU.

    lasting: whether what is settled outlives the process.
    """

    lasting: bool

    def put(self, shelf: str, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors."""

    def get(self, shelf: str, number: int) -> dict[str, Tensor]:
        """The tensors that were put there."""

    def settle(self, shelf: str) -> None:
        """Force a whole shelf to the disk."""

    def drop(self, shelf: str) -> None:
        """Forget a shelf, if it is there."""


class InMemory:
    """A dictionary of dictionaries."""

    lasting = False

    def __init__(self) -> None:
        self._shelves: dict[str, dict[int, dict[str, Tensor]]] = {}

    def put(self, shelf: str, number: int, tensors: Mapping[str, Tensor]) -> None:
        """See `Boundaries`."""
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self._shelves.setdefault(shelf, {})[number] = kept

    def get(self, shelf: str, number: int) -> dict[str, Tensor]:
        """See `Boundaries`."""
        return self._shelves[shelf][number]

    def settle(self, shelf: str) -> None:
        """Nothing lasts here."""

    def drop(self, shelf: str) -> None:
        """See `Boundaries`."""
        self._shelves.pop(shelf, None)


class InFiles:
    """A folder per shelf, a safetensors file per number."""

    lasting = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, shelf: str, number: int, tensors: Mapping[str, Tensor]) -> None:
        """See `Boundaries`."""
        from safetensors.torch import save_file

        (self._folder / shelf).mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, str(self._file(shelf, number)))

    def get(self, shelf: str, number: int) -> dict[str, Tensor]:
        """See `Boundaries`."""
        from safetensors.torch import load_file

        return load_file(str(self._file(shelf, number)))

    def settle(self, shelf: str) -> None:
        """See `Boundaries`."""
        for path in (*(self._folder / shelf).iterdir(), self._folder / shelf, self._folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def drop(self, shelf: str) -> None:
        """See `Boundaries`."""
        shutil.rmtree(self._folder / shelf, ignore_errors=True)

    def _file(self, shelf: str, number: int) -> Path:
        return self._folder / shelf / f"{number}.safetensors"
