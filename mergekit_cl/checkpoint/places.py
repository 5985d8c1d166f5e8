"""From the PATH a user typed to the weight files it means."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.errors import FormatError, InputError

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HUB = "hf://"


@dataclass(frozen=True)
class Place:
    """Weight files of one checkpoint.

    root: the folder with config and tokenizer. weight_map: {tensor: file name} of an index.
    side_folder: where this tool keeps what it adds.
    """

    root: Path
    files: tuple[Path, ...]
    weight_map: dict[str, str] | None
    side_folder: Path


def locate(path: str | Path) -> Place:
    """Find the weight files a PATH names.

    Raises InputError where nothing, or no weights, are there; FormatError for a broken index.
    """
    text = str(path)
    if text.startswith(HUB) or "://" in text:
        raise InputError(
            "only paths on this machine's disk can be opened",
            detail=text,
            hint=f"hf download {text.removeprefix(HUB)} --local-dir DIR, then give DIR"
            if text.startswith(HUB)
            else "copy it here first",
        )
    place = Path(path)
    if place.is_dir():
        return _directory(place)
    if place.name.endswith(".index.json") and place.is_file():
        return _sharded(place, place.with_name(place.name.split(".")[0] + ".clmerge"))
    if place.is_file():
        return Place(place.parent, (place,), None, single_file_side_folder(place))
    looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None
    raise InputError(
        "no such file or directory",
        detail=text,
        hint=f"hf download {text} --local-dir DIR if this is a model on the hub, then give DIR"
        if looks_like_hub
        else None,
    )


def single_file_side_folder(path: Path) -> Path:
    """The folder beside a single-file checkpoint: `x.clmerge` for `x.safetensors`."""
    return path.with_name(path.name.removesuffix(path.suffix) + ".clmerge")


def _directory(root: Path) -> Place:
    side = root / "clmerge"
    # Each format's single file goes before its index, safetensors before pickles: as transformers.
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (root / single).is_file():
            return Place(root, (root / single,), None, side)
        if (root / index).is_file():
            return _sharded(root / index, side)
    hint = "name the weight file itself" if _weight_files(root) else None
    if (root / "adapter_model.safetensors").is_file():
        hint = "this is an adapter, not a checkpoint"
    raise InputError(
        "the directory holds no checkpoint",
        detail=f"{root}: none of {', '.join([*SINGLE, *INDEXES])}",
        hint=hint,
    )


def _sharded(index: Path, side_folder: Path) -> Place:
    weight_map = read_index(index)
    names = dict.fromkeys(weight_map.values())
    root = index.parent
    return Place(root, tuple(root / name for name in names), weight_map, side_folder)


def _weight_files(root: Path) -> list[Path]:
    return [p for p in root.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth")]


def read_index(path: Path) -> dict[str, str]:
    """The weight map of an index, every file of which lies beside it and exists.

    Raises FormatError.
    """

    def broken(what: str, value: object = None) -> FormatError:
        detail = str(path) if value is None else f"{path}: {value!s:.120}"
        return FormatError(f"the index {what}", detail=detail, hint="fetch or save it again")

    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise broken("is not JSON") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken("has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise broken("names no file for a tensor", name)
    for file in dict.fromkeys(weight_map.values()):
        if file != Path(file).name or file in ("", ".", ".."):
            raise broken("names a file outside its folder", file)
        if not (path.parent / file).is_file():
            raise broken("names a file that is not there", file)
    return weight_map
