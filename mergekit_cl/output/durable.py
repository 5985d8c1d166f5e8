"""Names and bytes that outlast a power loss: forced to the disk before anything relies on them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def sync(path: Path) -> None:
    """Force the bytes of one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Force every file and folder below `root`, and `root` itself, to the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if stat.S_ISREG(path.lstat().st_mode):  # a link's name is in its folder
                sync(path)
        sync(Path(folder))


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file that is there whole or as it was before, whatever happens."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    sync(path.parent)


def make_folders(path: Path) -> list[Path]:
    """Make a folder and what is missing above it; returns those that were made, outermost first."""
    missing: list[Path] = []
    folder = path
    while not folder.exists():
        missing.insert(0, folder)
        folder = folder.parent
    for folder in missing:
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return missing
