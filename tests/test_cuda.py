"""On a GPU a merge writes the CPU's bytes. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from making import linear
from ring_cases import models, noise, on_cpu, plan_of

from mergekit_cl import stream
from mergekit_cl.block import BLOCK
from mergekit_cl.ring import budget, card
from mergekit_cl.ring.budget import RingSize, card_scratch, slot_bytes
from mergekit_cl.ring.cuda import CudaBackend, CudaStream
from mergekit_cl.ring.worker import RingWorker
from tests.commands.checkpoints import checkpoint, weights
from tests.commands.running import clmerge
from tests.ring.test_lora import CASES, write

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGE = 5 * BLOCK + 33
CYCLES = 50_000_000
"""Some 30 ms of a GPU's time."""
LINES = [
    ("linear-merge", "a", "b", "--weights", "0.3,0.7"),
    ("linear-merge", "a", "b", "c"),
    ("linear-merge", "a", "b", "--carry"),
    ("linear-merge", "a", "b", "--dtype", "bfloat16"),
    ("linear-merge", "a", "b", "--weights", "1,-0.5", "--no-normalize"),
    ("linear-merge", "a", "b", "--weights", "0.5,0.5", "--no-normalize", "--base", "c"),
    ("fisher-merge", "a", "b"),
    ("fisher-merge", "a", "b", "c", "--weights", "0.2,0.5,0.3"),
    ("fisher-merge", "a", "b", "--floor", "0", "--fallback", "first", "--carry"),
    ("ema-merge", "a", "b", "c", "--decay", "0.99"),
    ("ema-merge", "a", "b", "--decay", "0.99", "--allow-nonfinite", "--no-report"),
]


def place_models(place: Path, dtypes: tuple[torch.dtype, ...]) -> None:
    """Models a, b and c with sidecars; entries nobody measured, zeros of both signs."""
    from fisher import save

    said = {"estimator": "mc", "unit": "per_example", "level": "sequence", "examples": 1}
    for seed, (name, dtype) in enumerate(zip("abc", dtypes, strict=True)):
        tensors = {
            **weights(seed, dtype),
            "large": noise(LARGE, dtype, seed),
            "scalar": noise(1, dtype, seed + 3).reshape(()),
            "none": torch.empty((0, 4), dtype=dtype),
        }
        checkpoint(place / name, tensors)
        (place / name / "clmerge").mkdir()
        squares = {key: value.float().square() for key, value in tensors.items()}
        save(place / name / "clmerge" / "fisher.safetensors", squares, said)


@pytest.fixture
def everything_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of one block, and no tensor too small for them."""
    monkeypatch.setattr(budget, "CHUNK", BLOCK)
    monkeypatch.setattr(stream, "RingWorker", partial(RingWorker, smallest=0))


@pytest.mark.usefixtures("everything_on_the_card")
@pytest.mark.parametrize("line", LINES, ids=" ".join)
@pytest.mark.parametrize(
    "dtypes",
    [*((dtype,) * 3 for dtype in DTYPES), DTYPES[:3], (DTYPES[1], DTYPES[3], DTYPES[2])],
    ids=str,
)
def test_bytes_do_not_depend_on_the_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtypes: tuple[torch.dtype, ...],
    line: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    place_models(tmp_path, dtypes)
    for device in ("cpu", "cuda"):
        result = clmerge(*line, "--device", device, "-o", device, "--threads", "3")
        assert result.code == 0, result.err
    assert_same(tmp_path / "cpu", tmp_path / "cuda")


def assert_same(one: Path, other: Path) -> None:
    files = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    if (one / "clmerge/divergence.json").exists():
        ours, theirs = (_model(place) for place in (one, other))
        for metric, value in ours.items():
            known = value if value is None else pytest.approx(value, 1e-9, 1e-15)
            assert theirs[metric] == known, metric


@pytest.mark.usefixtures("everything_on_the_card")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapters_are_merged_to_the_same_bytes(
    tmp_path: Path, dtype: torch.dtype, case: str
) -> None:
    base, adapters = write(tmp_path, case, dtype)
    for device in ("cpu", "cuda"):
        line = ["lora-merge", base, *adapters, "--carry", "--device", device]
        assert clmerge(*line, "-o", tmp_path / device).code == 0
    assert_same(tmp_path / "cpu", tmp_path / "cuda")


def _model(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "clmerge/divergence.json").read_bytes())["model"]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_slots_of_their_full_size_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("ab"):
        tensors = {"w": noise(3 * budget.CHUNK + 5, torch.bfloat16, 10 * seed + k)}
        checkpoint(tmp_path / name, tensors)
    for device in ("cpu", "cuda"):
        assert clmerge("linear-merge", "a", "b", "--device", device, "-o", device).code == 0
    assert_same(tmp_path / "cpu", tmp_path / "cuda")


def test_auto_says_what_it_took_and_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place_models(tmp_path, DTYPES[:3])
    for device in ("cpu", "auto"):
        done = clmerge("fisher-merge", "a", "b", "--device", device, "-o", device, "--json")
        assert done.code == 0
    assert done.document["device"]["reason"].startswith("predicted from a measurement")
    assert_same(tmp_path / "cpu", tmp_path / "auto")


class Slowed(CudaBackend):
    """A GPU of which one stream is late with everything."""

    def __init__(self, late: str) -> None:
        super().__init__(torch.device("cuda"))
        self.late = late

    def stream(self, name: str) -> CudaStream:
        made = super().stream(name)
        return Late(self.device) if name == self.late else made


class Late(CudaStream):
    """Spins before each launch."""

    def launch(self, work: Callable[[], object]) -> None:
        def late() -> None:
            torch.cuda._sleep(CYCLES)
            work()

        super().launch(late)


@pytest.mark.parametrize("late", ["into", "compute", "out"])
def test_a_slowed_stream_changes_nothing(tmp_path: Path, late: str) -> None:
    tensors = [{"w": noise(8 * BLOCK, torch.bfloat16, seed)} for seed in (1, 2)]
    plan = plan_of(linear(models(tmp_path, tensors), weights=(0.3, 0.7)))
    size = RingSize(1, BLOCK, slot_bytes(plan, BLOCK), card_scratch(plan, BLOCK), 0)
    gpu = card.Card(Slowed(late), size)
    written = bytearray(16 * BLOCK)

    def write(data: memoryview, offset: int) -> None:
        written[offset : offset + data.nbytes] = data.tobytes()

    RingWorker(gpu, True, False, smallest=0).run(plan.steps["w"], 0, 8 * BLOCK, write)
    gpu.close()
    assert bytes(written) == on_cpu(plan).written


def test_nothing_queued_waits_for_the_card(tmp_path: Path) -> None:
    tensors = [{"w": noise(8 * BLOCK, torch.bfloat16, seed)} for seed in (1, 2)]
    plan = plan_of(linear(models(tmp_path, tensors)))
    size = RingSize(1, BLOCK, slot_bytes(plan, BLOCK), card_scratch(plan, BLOCK), 0)
    gpu = card.Card(CudaBackend(torch.device("cuda")), size)
    worker = RingWorker(gpu, True, False, smallest=0)
    worker.run(plan.steps["w"], 0, 8 * BLOCK, lambda data, offset: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")  # raises where torch would wait by itself
    try:
        worker.run(plan.steps["w"], 0, 8 * BLOCK, lambda data, offset: None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        gpu.close()
