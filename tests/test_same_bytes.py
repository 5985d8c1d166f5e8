"""The same merge in another process, on other vector units and hash seeds, is the same bytes; so is
one that reads its files another way. Blocks and pieces: test_stream.py; the ring: tests/ring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import (
    by_fisher,
    fisher_like,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_sidecar,
)

from mergekit_cl.checkpoint import readers

SIZE = 200_003  # more than a block, and no multiple of any vector


def write_inputs(folder: Path) -> list[Path]:
    paths = []
    for k, dtype in enumerate([torch.bfloat16, torch.float32, torch.float16]):
        generator = torch.Generator().manual_seed(k)
        tensors = {
            **{name: t.to(dtype) for name, t in model_tensors(k).items()},
            "long": (torch.randn(SIZE, generator=generator) * 0.1).to(dtype),
        }
        paths.append(write_model(folder / str(k), tensors))
        write_sidecar(paths[-1], fisher_like(tensors, k))
    return paths


def every_merge(inputs: list[Path], folder: Path) -> None:
    """Each formula, into float32 (where a fused operation shows) and into 16 bits."""
    for dtype in ("F32", "BF16", "F16"):
        two = {"weights": (0.3, 0.7)}
        merge(linear(inputs[:2], **two), folder / f"two-{dtype}", dtype=dtype)
        merge(linear(inputs, weights=(1, 2, 4)), folder / f"three-{dtype}", dtype=dtype)
        plain = linear(inputs, weights=(0.3, -0.2, 1.1), normalize=False)
        merge(plain, folder / f"sum-{dtype}", dtype=dtype)
        tasks = linear(inputs[:2], weights=(0.3, 0.9), normalize=False, base=inputs[2])
        merge(tasks, folder / f"tasks-{dtype}", dtype=dtype)
        merge(by_fisher(inputs), folder / f"fisher-{dtype}", dtype=dtype)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def here(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    every_merge(inputs, folder)
    return folder


@pytest.mark.parametrize(("capability", "hash_seed"), [("default", "1"), ("avx2", "77")])
def test_vector_units_and_hash_seeds_change_no_bit(
    inputs: list[Path], here: Path, tmp_path: Path, capability: str, hash_seed: str
) -> None:
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": capability,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    subprocess.run(
        [sys.executable, __file__, str(tmp_path), *map(str, inputs)],
        env=environment,
        check=True,
        timeout=120,
    )
    names = sorted(path.name for path in here.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 15
    for name in names:
        assert weight_bytes(tmp_path / name) == weight_bytes(here / name), name


@settings(deadline=None, max_examples=6)
@given(st.booleans(), st.integers(1, 4), st.integers(10**4, 10**6))
def test_how_files_are_read_changes_no_bit_whatever_workers_and_shards(
    inputs: list[Path],
    here: Path,
    tmp_path_factory: pytest.TempPathFactory,
    by_position: bool,
    threads: int,
    limit: int,
) -> None:
    target = tmp_path_factory.mktemp("read") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # Files on a network are read by position, others by mapping them.
        patch.setattr(readers, "is_on_network", lambda path: by_position)
        method = by_fisher(inputs)
        merge(method, target, dtype="BF16", threads=threads, shard_size=limit)
    kinds = {type(one._readers["long"]) for one in method.checkpoints}
    assert kinds == {readers.PositionedFile if by_position else readers.MappedFile}
    assert weight_bytes(target) == weight_bytes(here / "fisher-BF16")


if __name__ == "__main__":
    every_merge([Path(path) for path in sys.argv[2:]], Path(sys.argv[1]))
