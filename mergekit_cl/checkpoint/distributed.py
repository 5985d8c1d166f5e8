"""Distributed checkpoints of torch (`.metadata` and `*.distcp`), read without running their code.

torch's own reader unpickles the metadata and every plain value without a look; here the metadata
may name torch's descriptions alone, and values go through the weights-only loader.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mergekit_cl.checkpoint.unpickle import damaged
from mergekit_cl.errors import ClmergeError, FormatError

METADATA = ".metadata"
_DESCRIPTIONS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}


def is_distributed(path: Path) -> bool:
    """Whether a folder is a distributed checkpoint."""
    return (path / METADATA).is_file()


def read_distributed(path: Path, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The entries whose keys are `wanted`: whole tensors on the CPU, and plain values.

    Raises FormatError for damage, and for anything but tensors and plain values.
    """
    try:
        metadata = _read_metadata(path)
        keys = [key for key in metadata.state_dict_metadata if wanted(key)]
        entries = {key: _empty(metadata.state_dict_metadata[key]) for key in keys}
        _check(metadata, entries, path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                entries,
                storage_reader=_Reader(str(path), metadata),
                planner=_Planner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=True,
            )
    except ClmergeError:
        raise
    # torch wraps what happened while reading in errors of its own, and damage can raise anything.
    except (Exception, CheckpointException) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else repr(error)) from error
    return entries


class _Reader(FileSystemReader):
    """torch's reader, given the metadata instead of unpickling it."""

    def __init__(self, path: str, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _Planner(DefaultLoadPlanner):
    """torch's planner, which loads plain values as weights only."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def _member(kind: Any, name: str) -> Any:
    """A member of an Enum by its name, and nothing else that getattr could reach."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise FormatError(
            "the metadata holds more than a description of tensors, and is not opened",
            detail=f"getattr of {kind!r}",
            hint="save the checkpoint again with torch.distributed.checkpoint",
        )
    return kind[name]


class _Descriptions(pickle.Unpickler):
    """An unpickler that knows torch's descriptions of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _DESCRIPTIONS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("builtins", "getattr"):  # how some pickle members of an Enum
            return _member
        raise FormatError(
            "the metadata holds more than a description of tensors, and is not opened",
            detail=f"{module}.{name}",
            hint="save the checkpoint again with torch.distributed.checkpoint",
        )


def _read_metadata(path: Path) -> Metadata:
    with (path / METADATA).open("rb") as stream:
        try:
            found = _Descriptions(stream).load()
        except FormatError as error:
            error.detail = f"{path / METADATA}: {error.detail}"
            raise
    if not isinstance(found, Metadata):
        raise damaged(path / METADATA, f"it holds a {type(found).__name__}")
    found.storage_meta = found.storage_meta or StorageMeta()
    return found


def _empty(described: Any) -> torch.Tensor | None:
    if not isinstance(described, TensorStorageMetadata):
        return None
    return torch.empty(described.size, dtype=described.properties.dtype, device="meta")


def _check(metadata: Metadata, entries: dict[str, Any], path: Path) -> None:
    """Refuse tensors larger than the files, and files elsewhere; then make room for the tensors."""
    held = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    tensors = {key: value for key, value in entries.items() if value is not None}
    if sum(tensor.nbytes for tensor in tensors.values()) > held:
        raise damaged(path, "its tensors are larger than its files")
    for place in (metadata.storage_data or {}).values():
        if (path / place.relative_path).resolve().parent != path.resolve():
            raise damaged(path, f"it names a file elsewhere: {place.relative_path:.80}")
    entries.update({key: torch.zeros_like(t, device="cpu") for key, t in tensors.items()})
