"""What tells that a weight file is no longer the one that was opened, without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.checkpoint.filesystem import RemoteFile


@dataclass(frozen=True)
class Stamp:
    """One file at one moment. version: time in nanoseconds, or what a place beyond this disk says.

    changed: the time no program can set back, 0 beyond this disk; it and the inode also change
    where the content does not (a link, other permissions, a copy put in its place).
    """

    path: str
    nbytes: int
    version: str | int
    inode: int = 0
    changed: int = 0

    def differs(self, other: Stamp) -> bool:
        """Whether the file has surely been written in between."""
        return (self.nbytes, self.version) != (other.nbytes, other.version)


def stamp(file: Path | RemoteFile) -> Stamp:
    """The stamp of a file now; of one beyond this disk, as it was when it was found."""
    if isinstance(file, RemoteFile):
        return Stamp(str(file), file.nbytes, file.stamp)
    stat = file.stat()
    path = str(file.absolute())
    return Stamp(path, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
