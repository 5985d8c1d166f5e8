"""From the PATH a user typed to the weight files it means."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mergekit_cl.checkpoint.beyond import locate_url
from mergekit_cl.checkpoint.hub import HUB, by_ranges, fetch, is_file
from mergekit_cl.checkpoint.index import read_index
from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.checkpoint.place import INDEXES, SINGLE, Place, side_name
from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path
from mergekit_cl.errors import InputError


def locate(path: str | Path, *, headers_only: bool = False) -> Place:
    """Find the weight files a PATH names, on this disk or beyond it.

    headers_only: a model on the hub is left there. Raises InputError where nothing, or no weights,
    are there; FormatError for a broken index.
    """
    text = as_typed(path)
    if is_file(text):
        return locate_url(text)
    if text.startswith(HUB):
        if headers_only and (there := by_ranges(text)) is not None:
            url, commit = there
            return replace(locate_url(url), revision=commit)
        folder, commit = fetch(text)
        return replace(_directory(folder), revision=commit)
    if is_url(text):
        here = local_path(text)
        return locate_url(text) if here is None else _locate_here(here)
    return _locate_here(Path(text))


def _locate_here(place: Path) -> Place:
    kind = _kind(place)
    if kind == "directory":
        return _directory(place)
    if kind == "file" and place.name.endswith(".index.json"):
        return _sharded(place, single_file_side_folder(place), folder=False)
    if kind == "file":
        return Place(place.parent, (place,), None, single_file_side_folder(place), folder=False)
    looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)) is not None
    hints = [f"hf://{place} if this is a model on the hub"] if looks_like_hub else []
    if (near := nearest_path(place)) is not None:
        hints.insert(0, str(near))
    raise InputError(
        "no such file or directory",
        detail=f"{place!s:.300}",
        hint=", or ".join(hints) or None,
    )


def _kind(place: Path) -> str | None:
    try:
        return "directory" if place.is_dir() else "file" if place.is_file() else None
    except (OSError, ValueError):  # longer than names may be, or no text at all
        return None


def single_file_side_folder(path: Path) -> Path:
    """The folder beside a single-file checkpoint: `x.clmerge` for `x.safetensors`."""
    return path.with_name(side_name(path.name))


def _directory(root: Path) -> Place:
    side = root / "clmerge"
    # Each format's single file goes before its index, safetensors before pickles: as transformers.
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (root / single).is_file():
            return Place(root, (root / single,), None, side)
        if (root / index).is_file():
            return _sharded(root / index, side, folder=True)
    hint = "name the weight file itself" if _weight_files(root) else None
    if (root / "adapter_model.safetensors").is_file():
        hint = "this is an adapter, not a checkpoint"
    raise InputError(
        "the directory holds no checkpoint",
        detail=f"{root}: none of {', '.join([*SINGLE, *INDEXES])}",
        hint=hint,
    )


def _sharded(index: Path, side_folder: Path, *, folder: bool) -> Place:
    weight_map = read_index(index)
    names = dict.fromkeys(weight_map.values())
    root = index.parent
    return Place(root, tuple(root / name for name in names), weight_map, side_folder, folder)


def _weight_files(root: Path) -> list[Path]:
    return [p for p in root.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth")]
