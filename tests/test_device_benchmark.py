"""The GPU's benchmark runs, on a fake GPU; its numbers are for real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_device import FakeBackend

from benchmarks import device as benchmark
from benchmarks import synthetic
from mergekit_cl.ring import card

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "benchmarks/device.py"), "--work", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["no CUDA GPU is visible here: nothing to measure"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A pair of small models, and a fake in the place of the GPU."""
    for name, value in (("HIDDEN", 256), ("MLP", 512), ("KEYS", 32), ("VOCABULARY", 1000)):
        monkeypatch.setattr(synthetic, name, value)
    for name, seed in (("a", 1), ("b", 2)):
        synthetic.write_model(tmp_path / name, 1, seed)
        synthetic.write_sidecar(tmp_path / name, seed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(card, "open_backend", lambda named: FakeBackend())
    for module in ("fisher", "rounding"):
        monkeypatch.setattr(f"mergekit_cl.merge.{module}.can_be_asked", lambda tensor: False)
    plain = benchmark.plain_seconds
    monkeypatch.setattr(
        benchmark, "plain_seconds", lambda name, work, out, device: plain(name, work, out, "cpu")
    )
    return tmp_path


def test_every_row_is_measured_and_compared(small: Path) -> None:
    backend = FakeBackend()
    speed = benchmark.bandwidths(backend, 2**20, 2)
    backend.close()
    found = benchmark.comparison(small, speed, "cuda", 1).splitlines()
    assert [row.split(" | ")[0] for row in found[2:]] == ["| linear", "| fisher", "| ema"]
    assert all(row.endswith("| equal |") for row in found[2:])
    assert len({row.count("|") for row in found}) == 1
    assert not list(small.glob("out-*"))


def test_an_output_that_differs_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = benchmark.plain_seconds

    def spoiled(name: str, work: Path, out: Path, device: str) -> float:
        took = whole(name, work, out, device)
        file = next(out.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return took

    monkeypatch.setattr(benchmark, "plain_seconds", spoiled)
    speed = benchmark.Bandwidths(1e9, 1e9, 1e9, 1e9, 1e9, 1e9)
    found = benchmark.comparison(small, speed, "cuda", 1).splitlines()
    assert all(row.endswith("| DIFFER |") for row in found[2:])


def test_the_bound_is_the_slower_of_bus_and_host(small: Path) -> None:
    from mergekit_cl.merging import OutputOptions, make_plan

    plan = make_plan(benchmark.method_of("linear", small), OutputOptions(small / "out"))
    read, written = plan.bytes_read, plan.bytes_written
    even = benchmark.Bandwidths(1e9, 1e9, 1e9, 1e9, 1e9, 1e9)
    assert benchmark.bound_seconds(plan, even) == ((read + written) / 1e9, "host")
    slow_in = benchmark.Bandwidths(1e8, 1e9, 1e9, 1e9, 1e9, 1e9)
    assert benchmark.bound_seconds(plan, slow_in) == (read / 1e8, "bus")
    slow_out = benchmark.Bandwidths(1e9, 1e7, 1e9, 1e9, 1e9, 1e9)
    assert benchmark.bound_seconds(plan, slow_out) == (written / 1e7, "bus")
    assert benchmark.told(even).splitlines()[2] == "| to the GPU | 1.0 | 1.0 |"
