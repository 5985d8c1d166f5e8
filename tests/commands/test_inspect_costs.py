"""`clmerge inspect` reads headers and loads no framework, whatever the size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import raw_safetensors

from tests.commands.checkpoints import checkpoint
from tests.commands.inspections import told
from tests.commands.running import clmerge, process, start


@pytest.fixture
def merged(place: Path) -> Path:
    assert clmerge("fisher-merge", "a", "b", "-q").code == 0
    return place / "merged"


def test_safetensors_are_described_without_torch(merged: Path) -> None:
    script = (
        "import sys, mergekit_cl.cli as frame\n"
        "try:\n    frame.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    heavy = ('torch', 'numpy', 'rich', 'transformers', 'peft', 'safetensors', 'fsspec')\n"
        "    print(end.code, *(m for m in heavy if m in sys.modules))"
    )
    for path in (merged, merged / "clmerge", merged.parent / "a/clmerge/fisher.safetensors"):
        ran = subprocess.run(
            [sys.executable, "-c", script, "inspect", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.splitlines()[-1] == "0"


def test_terabytes_are_described_without_reading_them(tmp_path: Path) -> None:
    size = 2**42
    header = {"w": {"dtype": "F8_E4M3", "shape": [2**21, 2**21], "data_offsets": [0, size]}}
    path = tmp_path / "large.safetensors"
    path.write_bytes(raw_safetensors(header))
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("this file system holds no file of 4 TiB")
    found = told(path)
    assert (found["parameters"], found["tensor_bytes"]) == (size, size)


def test_the_bytes_of_weights_are_never_read(tmp_path: Path) -> None:
    # They would show in the bytes that the system handed to the process.
    folder = checkpoint(tmp_path / "m", {"w": torch.zeros(2**24)})
    script = (
        "import sys, mergekit_cl.cli as frame\n"
        "def read(): return int(open('/proc/self/io').read().split('rchar: ')[1].split()[0])\n"
        "before = read()\n"
        "try:\n    frame.main(sys.argv[1:])\n"
        "except SystemExit:\n    print(read() - before)"
    )
    ran = process_of(script, "inspect", folder)
    assert int(ran.splitlines()[-1]) < 2**22  # modules and the header, not 64 MiB


def process_of(script: str, *arguments: str | Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {f"w{k}": torch.ones(1) for k in range(20_000)})
    running = start("inspect", folder, "--tensors")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr is not None
    with running.stderr as stderr:
        assert stderr.read() == ""
    running.wait(60)


def test_as_a_process_it_prints_the_same(place: Path) -> None:
    inside = clmerge("inspect", "a", "--tensors")
    outside = process("inspect", "a", "--tensors", cwd=place)
    assert (outside.code, outside.out) == (0, inside.out)
