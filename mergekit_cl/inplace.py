"""Replacing a checkpoint by its successor without losing what else lies in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.place import INDEXES
from mergekit_cl.checkpoint.urls import is_url, local_path
from mergekit_cl.errors import OptionError
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import is_single_file, side_folder


def check_in_place(state: Checkpoint) -> None:
    """Raise OptionError where the successor could not have the state's name."""
    if state.here is None or not (state.folder or state.here.suffix == ".safetensors"):
        raise OptionError(
            "only a directory or a .safetensors file can be updated in place",
            detail=str(state.path),
            hint="give -o x.safetensors instead of --in-place",
        )


def link_others(state: Checkpoint, out: Path) -> None:
    """Hard-link into `out` every file of the state's folder but weights and `clmerge/`.

    The folder is then exchanged whole, so nobody ever sees it half replaced.
    """
    replaced = {path.name for path in state.files} | set(INDEXES)
    for folder, subfolders, files in os.walk(state.root):
        place = Path(folder)
        if place == state.root:
            subfolders[:] = [n for n in subfolders if n != "clmerge" and not n.startswith(".")]
            files = [name for name in files if name not in replaced]
        target = out / place.relative_to(state.root)
        target.mkdir(exist_ok=True)
        for name in files:
            if not (target / name).exists():
                os.link(place / name, target / name, follow_symlinks=False)


def complete_update(state: str) -> None:
    """Finish an update of `state` that was killed while it was published, before it is opened."""
    if is_url(state) and local_path(state) is None:
        return
    path = local_path(state) or Path(state)
    staging = Staging(path, side_folder=side_folder(path) if is_single_file(path) else None)
    staging.complete()
    staging.close()
