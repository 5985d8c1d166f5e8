"""Whole merges through the ring of a fake GPU: every file is the CPU's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_device import FakeBackend
from making import (
    by_fisher,
    files_below,
    fisher_like,
    linear,
    merge,
    model_tensors,
    write_model,
    write_sidecar,
)
from ring_cases import noise

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.method import Method

Put = Callable[[FakeBackend], None]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    paths = []
    for k in range(3):
        tensors = {
            **model_tensors(k),
            "large": noise(5 * BLOCK + 3, torch.bfloat16, k),
            "half": noise(BLOCK, torch.float16, k),
            "ids": torch.arange(5),
        }
        paths.append(write_model(tmp_path / str(k), tensors))
        write_sidecar(paths[-1], fisher_like(tensors, k))
    return paths


def ema(paths: list[Path]) -> Method:
    opened = [open_checkpoint(path) for path in paths]
    return ema_method(
        opened, decay=0.9, half_life=None, warmup=False, sidecars=[None] * len(opened)
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (linear, {}),
        (linear, {"carry": True}),
        (linear, {"dtype": "F32", "report": False}),
        (by_fisher, {}),
        (ema, {"carry": True}),
    ],
    ids=["linear", "carry", "float32", "fisher", "ema"],
)
def test_every_file_is_the_cpus(
    inputs: list[Path],
    tmp_path: Path,
    device: Put,
    method: Callable[[list[Path]], Method],
    options: dict[str, object],
) -> None:
    merge(method(inputs), tmp_path / "cpu", device="cpu", threads=2, **options)
    backend = FakeBackend({"into": 0.001, "out": 0.002})
    device(backend)
    outcome = merge(method(inputs), tmp_path / "card", device="cuda", threads=3, **options)
    assert outcome.device == {"name": "cuda", "reason": "as asked"}
    assert backend.allocated
    assert backend.closed
    one, other = (files_below(tmp_path / name) for name in ("cpu", "card"))
    assert set(one) == set(other)
    for name in one:
        if name.endswith(".safetensors"):
            assert one[name] == other[name], name
    first, second = (json.loads(files["clmerge/manifest.json"]) for files in (one, other))
    assert first["tensors"] == second["tensors"]
    assert [source["weights_digest"] for source in first["inputs"]] == [
        source["weights_digest"] for source in second["inputs"]
    ]
    if "clmerge/divergence.json" in one:
        models = [json.loads(files["clmerge/divergence.json"])["model"] for files in (one, other)]
        for metric, value in models[0].items():
            expected = value if value is None else pytest.approx(value, 1e-9, 1e-15)
            assert models[1][metric] == expected, metric


def test_a_second_update_goes_on_from_the_residuals(
    inputs: list[Path], tmp_path: Path, device: Put
) -> None:
    from mergekit_cl.carry import find_carry

    def twice(where: str) -> Path:
        first, second = tmp_path / f"{where}1", tmp_path / f"{where}2"
        merge(ema(inputs), first, device=where, carry=True)
        opened = [open_checkpoint(path) for path in (first, *inputs[1:])]
        method = ema_method(
            opened, decay=0.9, half_life=None, warmup=False, sidecars=[None] * len(opened)
        )
        carries = [find_carry(one) for one in opened]
        assert carries[0] is not None
        from dataclasses import replace

        merge(replace(method, carries=carries), second, device=where, carry=True)
        return second

    on_cpu = twice("cpu")
    device(FakeBackend({"compute": 0.001}))
    on_card = twice("cuda")
    for file in ("model.safetensors", "clmerge/carry.safetensors"):
        assert (on_cpu / file).read_bytes() == (on_card / file).read_bytes()


def test_bad_input_leaves_nothing_and_nothing_running(
    inputs: list[Path], tmp_path: Path, device: Put
) -> None:
    tensors = {**model_tensors(1), "large": noise(5 * BLOCK + 3, torch.bfloat16, 1)}
    tensors |= {"half": noise(BLOCK, torch.float16, 1), "ids": torch.arange(5)}
    tensors["large"][3 * BLOCK] = float("nan")
    write_model(inputs[1], tensors)
    backend = FakeBackend({"out": 0.005})
    device(backend)
    with pytest.raises(NonFiniteError) as caught:
        merge(linear(inputs), tmp_path / "out", device="cuda")
    assert f"{inputs[1]}: large" in (caught.value.detail or "")
    assert backend.closed
    assert not any(tmp_path.glob("*out*"))


def test_what_is_copied_beyond_a_smaller_vocabulary_is_the_hosts(
    tmp_path: Path, device: Put
) -> None:
    paths = []
    for k, rows in enumerate((3000, 2800)):
        held = {"model.embed_tokens.weight": noise(rows * 64, torch.bfloat16, k).view(rows, 64)}
        folder = write_model(tmp_path / str(k), held, {"vocab_size": rows, "model_type": "llama"})
        paths.append(folder)
    merge(linear(paths), tmp_path / "cpu", device="cpu", vocab="base")
    device(FakeBackend())
    merge(linear(paths), tmp_path / "card", device="cuda", vocab="base")
    one, other = (tmp_path / name / "model.safetensors" for name in ("cpu", "card"))
    assert one.read_bytes() == other.read_bytes()
