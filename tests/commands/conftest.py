"""Working directories to run commands in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.commands.checkpoints import checkpoint, sidecar
from tests.commands.models import write_models


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with checkpoints a and b, and a Fisher sidecar beside each."""
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(tmp_path / name, seed), seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def three(place: Path) -> Path:
    """The same with a third, c; toys.py holds their numbers."""
    sidecar(checkpoint(place / "c", 3), 3)
    return place


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that transformers saved (models.py), made once; not to be changed."""
    place = tmp_path_factory.mktemp("models")
    write_models(place)
    return place


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a copy of them."""
    shutil.copytree(tiny_models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
