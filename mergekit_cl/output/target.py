"""What may be written where, decided before anything is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.places import single_file_side_folder
from mergekit_cl.errors import OutputError
from mergekit_cl.manifest import read_manifest

SPARE_BYTES = 16 * 2**20
"""Room for manifest, report and journal."""


def is_single_file(target: Path) -> bool:
    """Whether `-o` names one file rather than a directory."""
    return target.suffix == ".safetensors"


def side_folder(target: Path) -> Path:
    """Where the manifest of an output lies."""
    return single_file_side_folder(target) if is_single_file(target) else target / "clmerge"


def check_apart(target: Path, inputs: Sequence[Checkpoint]) -> None:
    """Raise OutputError where the output is, lies in, or contains an input."""
    place = Path(os.path.realpath(target))
    for checkpoint in inputs:
        if checkpoint.here is None:
            continue
        source = Path(os.path.realpath(checkpoint.here))
        if place == source or source in place.parents or place in source.parents:
            raise OutputError(
                "the output would overwrite an input",
                detail=f"-o {target} and {checkpoint.path}",
                hint="choose an output outside the inputs",
            )


def check_replaceable(target: Path, *, force: bool) -> None:
    """Raise OutputError where something is there that may not be replaced.

    An empty directory may; with `force` so may what this tool made.
    """
    if not os.path.lexists(target):
        return
    if target.is_dir() and not is_single_file(target) and not _content(target):
        return
    ours = read_manifest(side_folder(target)) is not None
    if force and ours:
        return
    if force:
        raise OutputError(
            "the output exists and was not made by clmerge, so it is not replaced",
            detail=str(target),
            hint="move it away, or choose another -o",
        )
    raise OutputError(
        "the output exists",
        detail=str(target),
        hint="add --force to replace it" if ours else "choose another -o, or move it away",
    )


def check_room(target: Path, bytes_needed: int, *, taken: int = 0) -> None:
    """Raise OutputError where the disk has no room for the output.

    taken: bytes of it that an unfinished run already holds.
    """
    bytes_needed = max(bytes_needed - taken, 0)
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < bytes_needed + SPARE_BYTES:
        raise OutputError(
            "no room on the disk",
            detail=f"{folder}: {bytes_needed + SPARE_BYTES} bytes are needed, {free} are free",
            hint="free some, or choose another -o",
        )


def _content(folder: Path) -> list[Path]:
    """What is in a folder besides this tool's own unfinished work."""
    return [p for p in folder.iterdir() if not (p.name.startswith(".") and p.suffix == ".partial")]
