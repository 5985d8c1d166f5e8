"""The temporary place in which one command's output grows."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mergekit_cl.errors import OutputError
from mergekit_cl.output.journal import Journal
from mergekit_cl.output.publish import (
    finish_interrupted,
    publish_directory,
    publish_inside,
    sync,
    sync_tree,
)

MANIFEST = "manifest.json"


class Staging:
    """A locked folder beside the target: `out/` becomes the output, the rest is bookkeeping.

    target: a directory, or a file ending in `.safetensors` whose companions go to `side_folder`.
    """

    def __init__(self, target: Path, *, side_folder: Path | None = None) -> None:
        # A link to a folder stands for that folder: it is filled, and the link stays.
        linked = target.is_symlink() and target.is_dir()
        self.target = target.resolve() if linked else target.absolute()
        self.side_folder = side_folder
        self.inside = side_folder is None and _cannot_be_renamed(self.target)
        name = f".{self.target.name}.partial"
        self.place = (self.target if self.inside else self.target.parent) / name
        self.out = self.place / "out"
        self.journal = Journal(self.place / "journal.jsonl")
        self._lock: int | None = None

    def open(self, identity: dict[str, Any], *, restart: bool = False) -> None:
        """Take the place for the run `identity` describes, or continue it there.

        Raises OutputError when another process holds it, or another command left it unfinished.
        """
        try:
            self._open(identity, restart)
        except OSError as error:
            self.close()
            raise OutputError(
                "writing failed",
                detail=f"{self.place}: {error.strerror or error}",
                hint="mend that, or choose another -o, and give the same command again",
            ) from error

    def _open(self, identity: dict[str, Any], restart: bool) -> None:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        finish_interrupted(self.target)
        run = self.place / "run.json"
        found = _read_json(run)
        if found not in (None, identity) and not restart:
            self.close()
            raise OutputError(
                "another command was interrupted while writing this output",
                detail=f"{self.place}: {_difference(found, identity)}",
                hint="give that command again to finish it, or --restart to discard it",
            )
        if found != identity or restart:
            for entry in self.place.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "lock":
                    entry.unlink()
            run.write_text(json.dumps(identity))
            sync(run)
        self.out.mkdir(exist_ok=True)

    def is_unpublished(self, identity: dict[str, Any]) -> bool:
        """Whether a run of this identity was interrupted with weights still to publish.

        Only where publishing takes several steps: what is in the target then proves nothing.
        """
        if self.side_folder is None and not self.inside:
            return False
        ours = _read_json(self.place / "run.json") == identity
        return ours and next(self.out.glob("*.safetensors"), None) is not None

    def clear_own(self, identity: dict[str, Any]) -> None:
        """Remove what a run of this identity left after its output was already published."""
        if _read_json(self.place / "run.json") == identity:
            self.open(identity)
            self.discard()

    def taken(self) -> int:
        """Bytes an unfinished run already holds on the disk."""
        files = (path for path in self.place.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)

    def publish(self) -> None:
        """Move `out/` to the target in one step and remove the temporary place."""
        sync_tree(self.out)
        if self.side_folder is not None:
            companions = self.out / self.side_folder.name
            if companions.is_dir():
                self.side_folder.mkdir(exist_ok=True)
                publish_inside(companions, self.side_folder, last=(MANIFEST,))
            (self.out / self.target.name).replace(self.target)
            sync(self.target.parent)
        elif self.inside:
            indexes = tuple(entry.name for entry in self.out.glob("*.index.json"))
            replaced = set(weight_files(self.target)) - set(weight_files(self.out))
            publish_inside(self.out, self.target, (*indexes, "clmerge"), tuple(replaced))
        else:
            publish_directory(self.out, self.target)
        self.discard()

    def publish_over(self, folder: Path, names: tuple[str, ...]) -> None:
        """Move single files of `out/` into `folder`, in this order, each by one rename."""
        sync_tree(self.out)
        for name in names:
            (self.out / name).replace(folder / name)
        sync(folder)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary place: the run is finished or its input was bad."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Give back the lock and keep what is there."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        while True:
            self.place.mkdir(exist_ok=True)
            path = self.place / "lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                raise OutputError(
                    "another process is writing this output",
                    detail=str(self.target),
                    hint="wait for it to end, or choose another -o",
                ) from error
            # A run that ends removes the file: a lock on a removed file protects nothing.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                self._lock = descriptor
                return
            os.close(descriptor)


def weight_files(folder: Path) -> list[str]:
    """Names of weight files and indexes in an output's folder."""
    return [p.name for kind in ("*.safetensors", "*.index.json") for p in folder.glob(kind)]


def _cannot_be_renamed(target: Path) -> bool:
    if not target.is_dir():
        return False
    return os.path.ismount(target) or target.samefile(Path.cwd())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    keys = [key for key in wanted if (found or {}).get(key) != wanted[key]]
    return f"its {', '.join(keys) or 'options'} differ"
