"""Which kind of thing lies at a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fisher.sidecar import METADATA_KEY, SidecarError, decode_metadata
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.place import INDEXES, SINGLE
from mergekit_cl.checkpoint.urls import as_typed, shown
from mergekit_cl.errors import ClmergeError, FormatError, InputError
from mergekit_cl.inspecting.adapter import (
    CONFIG,
    adapter_weights,
    describe_adapter,
    is_adapter,
    is_adapter_folder,
)
from mergekit_cl.inspecting.architecture import architecture
from mergekit_cl.inspecting.fisher import describe_fisher, statistics
from mergekit_cl.inspecting.made import describe_made, files_recorded, tensors_recorded
from mergekit_cl.inspecting.plain import plain, read_object
from mergekit_cl.inspecting.tensors import count_tensors, files_of, tensors_of
from mergekit_cl.manifest import FORMAT
from mergekit_cl.recorded import MANIFEST, Recorded, find_manifest, read_recorded
from mergekit_cl.sidecar import NAMES, find_sidecar


def inspect_path(path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint, an adapter, a Fisher sidecar or a manifest, as JSON values.

    Raises InputError where none of them is there, FormatError for a file that is not what it
    claims to be.
    """
    here = Path(path)
    if here.is_dir() and not _holds_weights(here):
        if is_adapter_folder(here):
            with open_checkpoint(adapter_weights(here)) as opened:
                return _adapter(_told(path), opened)
        if (here / MANIFEST).is_file():
            return _manifest(_told(path), read_recorded(here / MANIFEST), _sidecar_in(here))
        if (sidecar := _sidecar_in(here)) is not None:
            return _weights(path, sidecar)
    if here.is_file() and here.suffix == ".json" and not here.name.endswith(".index.json"):
        return _json_file(path, here)
    return _weights(path, path)


def _weights(path: str | Path, at: str | Path) -> dict[str, Any]:
    with open_checkpoint(at, headers_only=True) as opened:
        if METADATA_KEY in opened.metadata:
            return _fisher(_told(path), opened)
        if not opened.folder and is_adapter(opened.tensors):
            return _adapter(_told(path), opened)
        return _checkpoint(_told(path), opened)


def _checkpoint(path: str, opened: Checkpoint) -> dict[str, Any]:
    made, unread = _section(lambda: _made_beside(opened))
    fisher, unread_too = _section(lambda: _fisher_beside(opened))
    return {
        **_common("checkpoint", path, opened),
        "architecture": architecture(opened.config, opened.tensors, opened.aliases),
        "aliases": opened.aliases,
        "config": plain(opened.config),
        "made": made,
        "fisher": fisher,
        "notes": [*unread, *unread_too],
    }


def _fisher(path: str, opened: Checkpoint) -> dict[str, Any]:
    metadata = _decoded(opened)
    return {
        **_common("fisher", path, opened),
        "metadata": {k: v for k, v in opened.metadata.items() if k != METADATA_KEY},
        "fisher": describe_fisher(metadata, opened.path),
        "statistics": statistics(metadata),
    }


def _adapter(path: str, opened: Checkpoint) -> dict[str, Any]:
    place = opened.root / CONFIG
    config = read_object(place) if place.is_file() else {}
    made, unread = _section(lambda: _made_in(opened.root / "clmerge"))
    return {
        **_common("adapter", path, opened),
        "adapter": describe_adapter(config, opened.tensors),
        "made": made,
        "notes": unread,
    }


def _manifest(path: str, recorded: Recorded, sidecar: Path | None) -> dict[str, Any]:
    files = files_recorded(recorded)
    fisher, unread = _section(lambda: None if sidecar is None else _described(sidecar))
    return {
        **_frame("manifest", path, files),
        **count_tensors(tensors_recorded(recorded)),
        "metadata": {},
        "made": describe_made(recorded),
        "fisher": fisher,
        "notes": unread,
    }


def _json_file(path: str | Path, here: Path) -> dict[str, Any]:
    if here.name == CONFIG:
        with open_checkpoint(adapter_weights(here.parent)) as opened:
            return _adapter(_told(path), opened)
    content = read_object(here)
    if content.get("format") == FORMAT:
        return _manifest(_told(path), read_recorded(here), _sidecar_in(here.parent))
    raise InputError(
        "the file is neither weights nor a manifest",
        detail=f"{here}: format {content.get('format')!r:.60}",
        hint="give the model's folder, a weight file, a sidecar or a manifest.json",
    )


def _common(kind: str, path: str, opened: Checkpoint) -> dict[str, Any]:
    return {
        **_frame(kind, path, files_of(opened)),
        **count_tensors(tensors_of(opened)),
        "metadata": opened.metadata,
    }


def _frame(kind: str, path: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(file["bytes"] for file in files)
    found = {"command": "inspect", "kind": kind, "path": path, "files": files, "bytes": total}
    return {**found, "notes": []}


def _made_beside(opened: Checkpoint) -> dict[str, Any] | None:
    return _made_in(opened.side_folder)


def _made_in(folder: Path) -> dict[str, Any] | None:
    manifest = find_manifest(folder)
    return None if manifest is None else describe_made(read_recorded(manifest))


def _fisher_beside(opened: Checkpoint) -> dict[str, Any] | None:
    place = find_sidecar(opened)
    return None if place is None else _described(place)


def _described(sidecar: str | Path) -> dict[str, Any]:
    with open_checkpoint(sidecar) as opened:
        return describe_fisher(_decoded(opened), opened.path)


def _decoded(sidecar: Checkpoint) -> dict[str, Any]:
    try:
        return decode_metadata(sidecar.metadata, str(sidecar.path))
    except SidecarError as error:
        raise FormatError("the file is no Fisher sidecar", detail=str(error)) from error


def _section(
    describe: Callable[[], dict[str, Any] | None],
) -> tuple[dict[str, Any] | None, list[str]]:
    """What lies beside the weights, or why it cannot be told: that is no reason to tell nothing."""
    try:
        return describe(), []
    except ClmergeError as error:
        return None, [f"{error.message}: {error.detail}"]


def _told(path: str | Path) -> str:
    """The path as it may be shown: a URL without what is secret in it."""
    return shown(as_typed(path))


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*SINGLE, *INDEXES))


def _sidecar_in(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)
