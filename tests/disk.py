"""What a disk may hold after a power loss: a model of file systems that keep only what was synced.

Bytes of a file outlast it if that file was synced after they were written, names in a folder if
that folder was. What was not synced may be lost, kept, kept in part, or be zeros, each sector and
each name by itself, in any order. A rename is whole or not at all, and moves nothing out of
existence: that much journalling file systems promise.
"""

from __future__ import annotations

import os
import pickle
import stat
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

Names = dict[str, int]
ROOT = 0
SECTOR = 64  # bytes written at once; real ones are larger, the files here are small


@dataclass
class State:
    """The place at one moment: as a reader sees it, and what the disk surely holds of it.

    Folders and files by their inode; `ROOT` stands for the place. seen_bytes of every file that
    has a name; synced ones as of their last sync, without an entry where there was none.
    """

    step: str
    seen_names: dict[int, Names] = field(default_factory=dict)
    synced_names: dict[int, Names] = field(default_factory=dict)
    seen_bytes: dict[int, bytes] = field(default_factory=dict)
    synced_bytes: dict[int, bytes] = field(default_factory=dict)
    modes: dict[int, tuple[int, int]] = field(default_factory=dict)


class Recorder:
    """Keeps the state before every step of the process it lives in."""

    def __init__(self, root: str, file: str) -> None:
        self._root = Path(root)
        self._file = Path(file)
        self._names: dict[int, Names] = {}
        self._bytes: dict[int, bytes] = {}
        self._held: dict[int, int] = {}
        self._states: list[State] = []
        begin = self._look("start")
        self._names, self._bytes = begin.seen_names, begin.seen_bytes

    def before(self, what: str, arguments: tuple[Any, ...]) -> None:
        """Take down the state."""
        self._states.append(self._look(what))

    def synced(self, descriptor: int) -> None:
        """A file or folder is on the disk from now on, as it is now."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            folder = Path(f"/proc/self/fd/{descriptor}")
            self._names[self._number(found.st_ino)] = self._listing(folder)
        else:
            self._bytes[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def save(self) -> None:
        """Write all states into the file."""
        self._states.append(self._look("end"))
        self._file.write_bytes(pickle.dumps(self._states))

    def _look(self, what: str) -> State:
        state = State(what, synced_names=dict(self._names), synced_bytes=dict(self._bytes))
        folders = [self._root]
        while folders:
            folder = folders.pop()
            number = self._number(folder.stat().st_ino)
            state.seen_names[number] = self._listing(folder)
            for name, inode in state.seen_names[number].items():
                path = folder / name
                found = path.lstat()
                state.modes[inode] = (found.st_mtime_ns, found.st_mode)
                self._hold(path, inode)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(path)
                else:
                    state.seen_bytes[inode] = path.read_bytes()
        return state

    def _listing(self, folder: Path) -> Names:
        return {path.name: path.lstat().st_ino for path in folder.iterdir()}

    def _number(self, inode: int) -> int:
        return ROOT if inode == self._root.stat().st_ino else inode

    def _hold(self, path: Path, inode: int) -> None:
        """Keep the inode from being given to another file after this one is removed."""
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)


def states(file: Path) -> list[State]:
    """What a recorder saved."""
    found: list[State] = pickle.loads(file.read_bytes())
    return found


def after_power_loss(state: State, random: Random, to: Path) -> None:
    """Build in `to` one of the places that the disk may hold; drawn at random.

    One draw in four loses all that can be lost, one loses bytes alone.
    """
    kind = random.choice(["all", "bytes", "some", "some"])
    names = _names(state, random, kind)
    to.mkdir()
    _build(state, names, ROOT, to, random, kind, {})


def _names(state: State, random: Random, kind: str) -> dict[int, Names]:
    """The names in every folder."""
    chosen: dict[int, Names] = {}
    folders = {*state.seen_names, *state.synced_names}
    for folder in folders:
        seen, synced = state.seen_names.get(folder), state.synced_names.get(folder, {})
        chosen[folder] = dict(synced)
        if seen is None:
            continue  # removed; it is there again only if its name is
        for name in sorted({*seen, *synced}):
            keeps = {"all": False, "bytes": True}.get(kind, random.random() < 0.5)
            if keeps and seen.get(name) != synced.get(name):
                chosen[folder].pop(name, None)
                if name in seen:
                    chosen[folder][name] = seen[name]
    _restore_lost(state, chosen)
    _one_name_for_a_folder(state, chosen)
    return chosen


def _restore_lost(state: State, chosen: dict[int, Names]) -> None:
    """What still has a name was renamed, not removed: where the new name is lost the old is not."""
    living = {inode for names in state.seen_names.values() for inode in names.values()}
    changed = True
    while changed:
        changed = False
        held = {inode for names in chosen.values() for inode in names.values()}
        for folder, names in state.synced_names.items():
            for name, inode in names.items():
                if inode in living and inode not in held:
                    chosen[folder][name] = inode
                    held.add(inode)
                    changed = True


def _one_name_for_a_folder(state: State, chosen: dict[int, Names]) -> None:
    """A folder has one name: the new one where both are there."""
    for inode in state.seen_names:
        places = [(f, n) for f, names in chosen.items() for n, i in names.items() if i == inode]
        new = [(f, n) for f, n in places if state.seen_names.get(f, {}).get(n) == inode]
        for folder, name in places:
            if len(places) > 1 and (folder, name) != (new or places)[0]:
                del chosen[folder][name]


def _build(
    state: State,
    names: dict[int, Names],
    folder: int,
    to: Path,
    random: Random,
    kind: str,
    built: dict[int, Path],
) -> None:
    for name, inode in sorted(names.get(folder, {}).items()):
        path = to / name
        if inode in state.seen_names or inode in state.synced_names:
            path.mkdir()
            _build(state, names, inode, path, random, kind, built)
        elif inode in built:
            os.link(built[inode], path)
        else:
            seen, synced = state.seen_bytes.get(inode), state.synced_bytes.get(inode, b"")
            path.write_bytes(synced if seen is None else _bytes(seen, synced, random, kind))
            if inode in state.modes:
                os.utime(path, ns=(state.modes[inode][0],) * 2)
            built[inode] = path


def _bytes(seen: bytes, synced: bytes, random: Random, kind: str) -> bytes:
    """The content of one file: what was synced, with any of what was written since."""
    if seen == synced or kind == "all":
        return synced
    how = random.choice(["lost", "kept", "cut", "sectors"])
    if how == "lost":
        return synced
    if how == "kept":
        return seen
    if how == "cut":  # never into what was synced
        return seen[: random.randint(min(len(synced), len(seen)), len(seen))]
    mixed = bytearray(seen)
    before = synced.ljust(len(seen), b"\0")  # room that was taken, but not yet written to
    for at in range(0, len(seen), SECTOR):
        if random.random() < 0.5:
            mixed[at : at + SECTOR] = before[at : min(at + SECTOR, len(seen))]
    return bytes(mixed)
