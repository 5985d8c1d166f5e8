"""One model's tensors, wherever and however they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint.header import Header, TensorInfo, read_header
from mergekit_cl.checkpoint.mapped import MappedFile
from mergekit_cl.checkpoint.pickled import PickledFile, is_pickle
from mergekit_cl.checkpoint.places import Place, locate
from mergekit_cl.errors import FormatError, InputError

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """Names, dtypes and shapes from headers alone; elements on demand.

    path: as the user gave it. root: folder with config and tokenizer. tensors: canonical names in
    file order. aliases: {tied name: canonical name}. config: `config.json`, or None.
    """

    def __init__(self, path: str | Path, place: Place) -> None:
        self.path = Path(path)
        self.root = place.root
        self.files = place.files
        self.side_folder = place.side_folder
        self.tensors: dict[str, TensorInfo] = {}
        self.aliases: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.headers: dict[str, Header] = {}
        self._readers: dict[str, MappedFile | PickledFile] = {}
        held: dict[str, str] = {}
        for file in place.files:
            names = self._open(file)
            _check_apart(names, held, file)
            held.update(dict.fromkeys(names, file.name))
        if place.weight_map is not None:
            _check_index(place, held)
        self.config = _read_config(place.root / "config.json")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in the stored dtype; usually a view."""
        tensor = self.tensors[name]
        return self._readers[name].read(tensor, start, tensor.numel if stop is None else stop)

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of one whole tensor in its shape."""
        return self.read(name).clone().reshape(self.tensors[name].shape)

    def release(self, name: str, start: int, stop: int) -> None:
        """Say that these elements will not be read again soon."""
        self._readers[name].release(self.tensors[name], start, stop)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._readers[name].path

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def close(self) -> None:
        """Give back the files."""
        for reader in self._readers.values():
            reader.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, path: Path) -> list[str]:
        """Take in one file; gives the names of its tensors, tied ones too."""
        reader: MappedFile | PickledFile
        aliases: dict[str, str] = {}
        try:
            if is_pickle(path):
                reader = PickledFile(path)
                found: tuple[TensorInfo, ...] = reader.infos()
                aliases = reader.aliases
            else:
                reader = MappedFile(path)
                with path.open("rb") as stream:
                    header = read_header(stream, path.stat().st_size, str(path))
                self.headers[path.name] = header
                found = header.tensors
                self.metadata.update(header.metadata)
        except OSError as error:
            raise InputError(
                "a weight file cannot be read", detail=f"{path}: {error.strerror}"
            ) from error
        names = [tensor.name for tensor in found]
        self.tensors.update(zip(names, found, strict=True))
        self._readers.update(dict.fromkeys(names, reader))
        self.aliases.update(aliases)
        return [*names, *aliases]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint at PATH from its headers.

    Raises InputError or FormatError where it is missing, truncated or inconsistent.
    """
    return Checkpoint(path, locate(path))


def _check_apart(names: list[str], held: dict[str, str], path: Path) -> None:
    """Refuse a tensor that an earlier file holds; held: {name: file name}."""
    if held.keys().isdisjoint(names):
        return
    twice = next(name for name in names if name in held)
    raise FormatError(
        "a tensor is in two files",
        detail=f"{path.parent}: {twice} in {held[twice]} and {path.name}",
        hint="fetch or save the checkpoint again",
    )


def _check_index(place: Place, held: dict[str, str]) -> None:
    """Refuse an index that does not say of every tensor which file holds it."""
    weight_map = place.weight_map or {}
    if held == weight_map:
        return
    for name, file in weight_map.items():
        if held.get(name) != file:
            raise FormatError(
                "the index names a tensor that its file does not hold",
                detail=f"{place.root}: {name} in {file}",
                hint="fetch or save the checkpoint again",
            )
    extra = sorted(held.keys() - weight_map.keys())
    raise FormatError(
        f"the index leaves out {len(extra)} tensors of its files",
        detail=f"{place.root}: {', '.join(extra[:3])}",
        hint="fetch or save the checkpoint again",
    )


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            "config.json cannot be read", detail=f"{path}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FormatError("config.json is not JSON", detail=f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise FormatError("config.json is not a JSON object", detail=str(path))
    return config
