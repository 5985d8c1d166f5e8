"""A manifest read back: what it says of the checkpoint beside it, checked before it is believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.errors import FormatError, InputError
from mergekit_cl.manifest import FORMAT

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RecordedTensor:
    """One tensor as the manifest lists it."""

    digest: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recorded:
    """A manifest; files: {name: (bytes, digest of the header)}. content: all of it."""

    path: Path
    content: dict[str, Any]
    command: str
    weights_digest: str
    tensors: dict[str, RecordedTensor]
    files: dict[str, tuple[int, str]]

    @property
    def is_adapter(self) -> bool:
        """Whether it speaks of an adapter, which is one file and no checkpoint."""
        return bool(self.files) and all(n.startswith("adapter_model.") for n in self.files)


def find_manifest(side_folder: Path) -> Path | None:
    """The manifest in a side folder, if there is one."""
    path = side_folder / MANIFEST
    return path if path.is_file() else None


def read_recorded(path: Path) -> Recorded:
    """Read a manifest.

    Raises InputError where the file cannot be read, FormatError where it is not a manifest or one
    that another version wrote, naming what is wrong.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            "the manifest cannot be read", detail=f"{path}: {error.strerror}"
        ) from error
    return parse_recorded(raw, path)


def parse_recorded(raw: bytes, path: Path) -> Recorded:
    """A manifest from its bytes; path: where they came from, for messages."""
    content = _load(raw, path)
    if content.get("format") != FORMAT:
        raise _broken(
            "is not a manifest of this version", path, f"format {content.get('format')!r}"
        )
    command = _text(content.get("command"), path, "command")
    outputs = content.get("outputs")
    if not isinstance(outputs, list) or not outputs or not isinstance(outputs[0], dict):
        raise _broken("says nothing of an output", path, "outputs")
    tensors = content.get("tensors")
    if not isinstance(tensors, dict):
        raise _broken("lists no tensors", path, "tensors")
    return Recorded(
        path,
        content,
        command,
        _text(outputs[0].get("weights_digest"), path, "outputs: weights_digest"),
        {name: _tensor(entry, path, name) for name, entry in tensors.items()},
        dict(
            _file(entry, path) for entry in _list(outputs[0].get("files"), path, "outputs: files")
        ),
    )


def _load(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken("is not JSON", path, str(error)) from error
    if not isinstance(content, dict):
        raise _broken("is not a JSON object", path, type(content).__name__)
    return content


def _tensor(entry: Any, path: Path, name: str) -> RecordedTensor:
    if not isinstance(entry, dict):
        raise _broken("lists a tensor incompletely", path, name)
    shape = _list(entry.get("shape"), path, f"{name}: shape")
    if not all(type(length) is int for length in shape):
        raise _broken("lists a tensor of impossible shape", path, f"{name}: {shape}")
    return RecordedTensor(
        _text(entry.get("digest"), path, f"{name}: digest"),
        _text(entry.get("dtype"), path, f"{name}: dtype"),
        tuple(shape),
    )


def _file(entry: Any, path: Path) -> tuple[str, tuple[int, str]]:
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
        raise _broken("lists a file incompletely", path, repr(entry))
    name = _text(entry.get("name"), path, "outputs: files: name")
    if name != Path(name).name or name in ("", ".", "..") or "\0" in name:
        raise _broken("names a file outside its folder", path, name)
    return name, (entry["bytes"], _text(entry.get("digest"), path, f"{name}: digest"))


def _text(value: Any, path: Path, what: str) -> str:
    if not isinstance(value, str):
        raise _broken("lacks a text", path, what)
    return value


def _list(value: Any, path: Path, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _broken("lacks a list", path, what)
    return value


def _broken(what: str, path: Path, detail: str) -> FormatError:
    return FormatError(
        f"the manifest {what}",
        detail=f"{path}: {detail:.160}",
        hint="bring back the manifest that the merge wrote, or merge again",
    )
