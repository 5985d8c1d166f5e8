"""Replacing a checkpoint by its successor without losing what else lies in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.place import INDEXES
from mergekit_cl.errors import OptionError


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
