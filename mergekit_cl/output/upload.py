"""An output beyond this disk: what is there already, and files in the order that is safe.

An object store has no rename: while an output is replaced, its folder holds some files of each. So
its manifest goes first and comes back last, and a mark says meanwhile that this tool is at work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mergekit_cl.checkpoint.filesystem import RemoteFolder
from mergekit_cl.checkpoint.place import side_name
from mergekit_cl.checkpoint.refusals import access_error, is_lasting
from mergekit_cl.checkpoint.urls import is_http, shown, split
from mergekit_cl.errors import ClmergeError, Interrupted, OutputError
from mergekit_cl.manifest import read_manifest, write_json

MANIFEST, MARK = "manifest.json", "unfinished.json"
State = Literal["absent", "unfinished", "ours", "other"]


class RemoteOutput:
    """The place of one output. url: a folder's, or a file's that ends in `.safetensors`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if is_http(url) or url.startswith("hf://"):
            raise OutputError(
                "nothing can be written to this kind of place",
                detail=shown(url),
                hint="-o DIR, then upload it with the place's own tool",
            )
        parent, self.name = split(self.url)
        self.single = self.name.endswith(".safetensors")
        self.side = side_name(self.name) if self.single else "clmerge"
        self._folder = RemoteFolder(parent if self.single else self.url)
        self.close = self._folder.close

    @property
    def shown(self) -> str:
        """The URL without what may be secret."""
        return shown(self.url)

    def state(self) -> State:
        """What is there: nothing, this tool's unfinished or finished work, or anything else."""
        if self._folder.find(f"{self.side}/{MANIFEST}") is not None:
            return "ours" if self.manifest() is not None else "other"
        if self._folder.find(f"{self.side}/{MARK}") is not None:
            return "unfinished"
        listing = self._folder.listing() or {}
        taken = self.name in listing if self.single else bool(listing)
        return "other" if taken else "absent"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest that is there, or None where there is none this version can read."""
        file = self._folder.find(f"{self.side}/{MANIFEST}")
        if file is None:
            return None
        copy = self._folder.scratch / MANIFEST
        copy.write_bytes(self._folder.fetch_small([file])[0])
        return read_manifest(self._folder.scratch)

    def check_replaceable(self, *, force: bool) -> None:
        """Raise OutputError where something is there that may not be replaced."""
        state = self.state()
        if state in ("absent", "unfinished") or (state == "ours" and force):
            return
        if force:
            raise OutputError(
                "the output exists and was not made by clmerge, so it is not replaced",
                detail=self.shown,
                hint="move it away, or choose another -o",
            )
        raise OutputError(
            "the output exists",
            detail=self.shown,
            hint="add --force to replace it" if state == "ours" else "choose another -o",
        )

    def claim(self) -> None:
        """Put the mark there: what cannot be written to is known before anything is computed."""
        mark = self._folder.scratch / MARK
        mark.write_text('{"format": "clmerge.upload/1"}\n')
        with _told(self.url):
            self._folder.put(mark, f"{self.side}/{MARK}")

    def give_up(self) -> None:
        """Take the mark away again."""
        with _told(self.url):
            self._remove([f"{self.side}/{MARK}"])

    def upload(self, root: Path, advance: Callable[[int], None]) -> None:
        """Bring every file below `root` there, the index after the weights, the manifest last.

        advance: told the bytes of each file. Raises OutputError where the place fails.
        """
        names = sorted(
            (str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()), key=_turn
        )
        made = f"{self.side}/{MANIFEST}"
        manifest = json.loads((root / made).read_bytes())
        manifest["outputs"][0]["path"] = self.shown
        write_json(root / made, manifest)
        with _told(self.url):
            self._remove([made])
            for name in names[:-1]:
                self._folder.put(root / name, name)
                advance((root / name).stat().st_size)
            self._remove(self._stale(names))
            self._folder.put(root / made, made)
            self._remove([f"{self.side}/{MARK}"])

    def _stale(self, names: list[str]) -> list[str]:
        """Files of an earlier output that this one does not replace."""
        beside = RemoteFolder(f"{self._folder.url}/{self.side}")
        there = [f"{self.side}/{name}" for name in beside.listing() or {}]
        beside.close()
        if not self.single:
            there += list(self._folder.listing() or {})
        return [n for n in there if n not in names and n != f"{self.side}/{MARK}"]

    def _remove(self, names: list[str]) -> None:
        for name in names:
            if self._folder.find(name) is not None:
                self._folder.remove(name)


def _turn(name: str) -> tuple[int, str]:
    """Weights first, then what belongs to them, then the index, last the manifest."""
    path = PurePosixPath(name)
    if path.name == MANIFEST and len(path.parts) > 1:
        return 4, name
    if name.endswith(".index.json"):
        return 3, name
    if len(path.parts) > 1:
        return 2, name
    return (0 if path.suffix == ".safetensors" else 1), name


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Raise what a filesystem raises as an OutputError without secrets."""
    try:
        yield
    except Interrupted:
        raise
    except ClmergeError as error:
        raise OutputError("the output cannot be uploaded", detail=error.detail) from None
    except Exception as error:
        told = access_error(error, url)
        detail = f"{told.detail}: {told.message}" if is_lasting(error) else told.detail
        raise OutputError("the output cannot be uploaded", detail=detail) from None
