"""From the --data paths a user gave to the files they mean."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path, shown
from mergekit_cl.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".text")


def find_files(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """The data files of `paths`, each once: a file, a directory (searched below) or a glob.

    Hidden files are passed over in directories. Raises DataError where a path names nothing.
    """
    if not paths:
        raise DataError("no data was given", hint="--data FILE")
    found: dict[Path, Path] = {}
    for path in paths:
        for file in _files_of(path):
            found.setdefault(file.resolve(), file)
    return tuple(found.values())


def _files_of(path: str | Path) -> Iterable[Path]:
    place = local_path(as_typed(path)) or Path(path)
    if place.is_dir():
        below = sorted(file for file in place.rglob("*") if _is_data(file, place))
        if not below:
            raise DataError(
                "the directory holds no data files",
                detail=f"{place}: none of *{', *'.join(SUFFIXES)}",
            )
        return below
    if place.exists():
        return [_known(place)]
    if glob.has_magic(str(path)):
        # Path.glob takes no absolute patterns before Python 3.13.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        files = [file for file in matches if file.is_file()]
        if not files:
            raise DataError("no file matches the pattern", detail=str(path))
        return [_known(file) for file in files]
    if is_url(as_typed(path)) and local_path(as_typed(path)) is None:
        raise DataError(
            "rows are read from this disk",
            detail=f"--data {shown(as_typed(path))}",
            hint="copy the file here first (hf download, aws s3 cp, curl -O), then name the copy",
        )
    near = nearest_path(place)
    raise DataError(
        "no such file or directory", detail=str(path), hint=None if near is None else str(near)
    )


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


def _known(file: Path) -> Path:
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(
            "the kind of this data file is not known",
            detail=str(file),
            hint=f"name it *{', *'.join(SUFFIXES)}, after what it holds",
        )
    return file
