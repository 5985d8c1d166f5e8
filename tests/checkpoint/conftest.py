"""Places beyond the disk that exist for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import FileServer, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    """An HTTP server of `tmp_path / "www"`."""
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as running:
        yield running


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty folder in fsspec's memory filesystem."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    yield "memory://models"
    MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that a test sees what is left of them."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
