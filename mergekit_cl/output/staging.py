"""The temporary place in which one command's output grows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import OutputError
from mergekit_cl.manifest import read_manifest
from mergekit_cl.output import lock
from mergekit_cl.output.durable import make_folders, sync, sync_tree, write_durably
from mergekit_cl.output.journal import Journal
from mergekit_cl.output.publish import (
    finish_interrupted,
    move_file,
    publish_directory,
    publish_inside,
)

MANIFEST = "manifest.json"
SIDE = "clmerge"
RUN, PUBLISHING = "run.json", "publishing.json"
"""The place's state: a run is unfinished, or complete and on its way to the target. Both hold
{"run": identity, "folders": those made above the target}; the second also {"manifest": its digest,
"replaced": names of an older output that give way}."""
OF_AN_OUTPUT = ("divergence.json", "report.html", "carry.safetensors", "undo.safetensors")


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
        self._folders: list[Path] = []

    def open(self, identity: dict[str, Any], *, restart: bool = False) -> None:
        """Take the place for the run `identity` describes, or continue it there.

        Raises OutputError when another process holds it, or another command left it unfinished.
        """
        with self._told():
            self._open(identity, restart)

    def _open(self, identity: dict[str, Any], restart: bool) -> None:
        self._take_lock()
        finish_interrupted(self.target)
        found = _read_json(self.place / RUN)
        run = None if found is None else found.get("run")
        if run not in (None, identity) and not restart:
            self.close()
            raise OutputError(
                "another command was interrupted while writing this output",
                detail=f"{self.place}: {_difference(run, identity)}",
                hint="give that command again to finish it, or --restart to discard it",
            )
        if found is not None:
            self._folders = [*map(Path, found["folders"]), *self._folders]
        if run != identity or restart:
            self._empty()
            folders = [str(folder) for folder in self._folders]
            record = {"run": identity, "folders": folders}
            write_durably(self.place / RUN, json.dumps(record).encode())
        make_folders(self.out)

    def complete(self) -> dict[str, Any] | None:
        """Finish what a run that was killed while it published had begun.

        Returns the identity of that run and holds the place, which `discard` removes; None where
        there was none. Raises OutputError when another process holds it.
        """
        if not (self.place / PUBLISHING).exists():
            return None
        with self._told():
            self._take_lock()
            record = _read_json(self.place / PUBLISHING)
            if record is None:
                self.close()
                return None
            self._move(record)
        run: dict[str, Any] = record["run"]
        return run

    def clear(self, identity: dict[str, Any]) -> None:
        """Remove what a run of this identity, or nobody's, left after its output was published.

        identity: all of it, or what of it is known once the output is there.
        """
        found = _read_json(self.place / RUN)
        run = identity if found is None else found.get("run") or {}
        if not self.place.exists() or any(run.get(key) != identity[key] for key in identity):
            return
        with suppress(FileNotFoundError):
            self._lock = lock.lock_folder(self.place)
        if self._lock is not None:
            self.discard()

    def taken(self) -> int:
        """Bytes an unfinished run already holds on the disk."""
        files = (path for path in self.place.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)

    def publish(self) -> None:
        """Move `out/`, which holds a manifest, to the target and remove the temporary place.

        From the moment that is decided, what comes after a kill is `complete`.
        """
        sync_tree(self.out)
        name = SIDE if self.side_folder is None else self.side_folder.name
        record = _read_json(self.place / RUN) or {"run": {}, "folders": []}
        record["manifest"] = bytes_digest((self.out / name / MANIFEST).read_bytes())
        record["replaced"] = self._replaced()
        write_durably(self.place / PUBLISHING, json.dumps(record).encode())
        (self.place / RUN).unlink(missing_ok=True)
        self._move(record)
        self.discard()

    def _replaced(self) -> list[str]:
        """Names of an older output that this one does not have."""
        if self.inside:
            return sorted(set(weight_files(self.target)) - set(weight_files(self.out)))
        if self.side_folder is None:
            return []  # the whole folder gives way
        old = read_manifest(self.side_folder)
        files = old["outputs"][0]["files"] if old is not None else []
        if self.target.name not in [file["name"] for file in files]:
            return []
        companions = self.out / self.side_folder.name
        return [name for name in OF_AN_OUTPUT if not (companions / name).exists()]

    def _move(self, record: dict[str, Any]) -> None:
        """Every step to the target that is not yet done."""
        replaced = tuple(record["replaced"])
        if self.side_folder is not None:
            companions = self.out / self.side_folder.name
            if companions.is_dir():
                make_folders(self.side_folder)
                publish_inside(companions, self.side_folder, (MANIFEST,), replaced)
            for weights in self.out.glob("*.safetensors"):
                move_file(weights, self.target)
        elif self.inside:
            if self.out.is_dir():
                indexes = tuple(entry.name for entry in self.out.glob("*.index.json"))
                publish_inside(self.out, self.target, (*indexes, SIDE), replaced)
        elif not _is_there(self.target, record["manifest"]):
            publish_directory(self.out, self.target)
        else:
            finish_interrupted(self.target)

    def publish_over(self, folder: Path, names: tuple[str, ...]) -> None:
        """Move single files of `out/` into `folder`, in this order, each by one rename."""
        sync_tree(self.out)
        for name in names:
            (self.out / name).replace(folder / name)
        sync(folder)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary place: the run is finished or its input was bad."""
        with suppress(OSError):
            self._empty()
            (self.place / lock.NAME).unlink(missing_ok=True)
            self.place.rmdir()
        self.close()
        for folder in reversed(self._folders):
            with suppress(OSError):
                folder.rmdir()  # only where it is empty: nothing was published there
        self._folders = []

    def close(self) -> None:
        """Give back the lock and keep what is there."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise OutputError(
                "writing failed",
                detail=f"{self.place}: {error.strerror or error}",
                hint="mend that, or choose another -o, and give the same command again",
            ) from error

    def _empty(self) -> None:
        """Remove all but the lock. What says whose it is goes first: half of it is nobody's."""
        for name in (RUN, PUBLISHING):
            (self.place / name).unlink(missing_ok=True)
        sync(self.place)
        for entry in self.place.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != lock.NAME:
                entry.unlink()
        sync(self.place)

    def _take_lock(self) -> None:
        while True:
            self._folders += make_folders(self.place.parent)
            self.place.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                self._lock = lock.lock_folder(self.place)
                break
        if self._lock is None:
            raise OutputError(
                "another process is writing this output",
                detail=str(self.target),
                hint="wait for it to end, or choose another -o",
            )
        sync(self.place.parent)


def weight_files(folder: Path) -> list[str]:
    """Names of weight files and indexes in an output's folder."""
    return [p.name for kind in ("*.safetensors", "*.index.json") for p in folder.glob(kind)]


def _cannot_be_renamed(target: Path) -> bool:
    if not target.is_dir():
        return False
    return os.path.ismount(target) or target.samefile(Path.cwd())


def _is_there(target: Path, manifest: str) -> bool:
    try:
        return bytes_digest((target / SIDE / MANIFEST).read_bytes()) == manifest
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    keys = [key for key in wanted if (found or {}).get(key) != wanted[key]]
    return f"its {', '.join(keys) or 'options'} differ"
