"""Do a piece of work once: skip it while what it was made from is the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def once(out: Path, recipe: dict[str, object], make: Callable[[Path], None]) -> bool:
    """Make the file or folder `out` by `make(path)`, unless the same recipe has made it before.

    The recipe is kept beside it, in `.OUT.made.json`. What this made by another recipe is replaced,
    anything else is left alone (an error). It is written elsewhere and renamed, so that an
    interrupted run leaves nothing half done. Returns whether there was something to do.
    """
    stamp = out.with_name(f".{out.name}.made.json")
    wanted = json.dumps(recipe, indent=1, sort_keys=True)
    if out.exists():
        if not stamp.exists():
            raise SystemExit(f"error: {out} was not made by this example\n  try: move it away")
        if stamp.read_text() == wanted:
            print(f"up to date: {out}", flush=True)
            return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / out.name
        make(fresh)
        if out.is_dir():
            shutil.rmtree(out)
        # The stamp goes first: without it, what a run that stops here leaves would look foreign.
        stamp.write_text(wanted)
        fresh.replace(out)
    return True


def digest(path: Path) -> str:
    """sha256 of a file, or of the weights in a model folder."""
    if path.is_dir():
        path = path / "model.safetensors"
    running = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            running.update(piece)
    return running.hexdigest()
