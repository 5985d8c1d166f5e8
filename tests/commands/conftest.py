"""What the tests of merges share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.checkpoints import checkpoint, sidecar


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with checkpoints a and b, and a Fisher sidecar beside each."""
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(tmp_path / name, seed), seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path
