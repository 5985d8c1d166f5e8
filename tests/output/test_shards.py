"""Weight files of their planned size, filled in any order."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.output.shards import ShardFiles, write_all

TENSORS = {"a": torch.arange(1000.0), "b": torch.arange(300.0).bfloat16(), "c": torch.ones(0)}


@pytest.fixture
def layout() -> Layout:
    shapes = [("a", "F32", (1000,)), ("b", "BF16", (300,)), ("c", "F32", (0,))]
    return lay_out(shapes, stem="model", shard_size=4000, metadata={"format": "pt"})


def test_pieces_written_in_any_order_make_the_file(tmp_path: Path, layout: Layout) -> None:
    files = ShardFiles(tmp_path, layout)
    jobs = []
    for shard in layout.shards:
        files.create(shard)
        assert (tmp_path / shard.file).stat().st_size == shard.header.file_bytes
        for info in shard.header.tensors:
            data = TENSORS[info.name].view(torch.uint8).numpy().tobytes()
            write = files.writer(shard.file, info.offset)
            jobs += [(write, data[i : i + 100], i) for i in range(0, len(data), 100)]
    Random(0).shuffle(jobs)
    for write, data, offset in jobs:
        write(memoryview(data), offset)
    for shard in layout.shards:
        files.finish(shard.file)
    found: dict[str, torch.Tensor] = {}
    for shard in layout.shards:
        found.update(load_file(tmp_path / shard.file))
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_room_is_taken_when_a_file_is_made(tmp_path: Path) -> None:
    # A sparse file would run out of disk in the middle of the work.
    large = lay_out([("w", "U8", (2**22,))], stem="x", shard_size=2**30, metadata={})
    files = ShardFiles(tmp_path, large)
    files.create(large.shards[0])
    files.close()
    assert (tmp_path / "x.safetensors").stat().st_blocks * 512 >= 2**22


def test_a_file_of_an_earlier_attempt_is_emptied(tmp_path: Path, layout: Layout) -> None:
    shard = layout.shards[0]
    (tmp_path / shard.file).write_bytes(b"\xff" * 10_000)
    files = ShardFiles(tmp_path, layout)
    files.create(shard)
    files.close()
    written = (tmp_path / shard.file).read_bytes()
    assert written == shard.header.raw.ljust(shard.header.file_bytes, b"\0")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_gives_back_every_file(tmp_path: Path, layout: Layout) -> None:
    before = open_files()
    files = ShardFiles(tmp_path, layout)
    for shard in layout.shards:
        files.create(shard)
    files.finish(layout.shards[0].file)
    files.close()
    files.close()
    assert open_files() == before


def test_a_write_the_system_cuts_short_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        write_all(descriptor, b"0123456789", 2)
    finally:
        os.close(descriptor)
    assert (tmp_path / "x").read_bytes() == b"\0\0" + b"0123456789"
