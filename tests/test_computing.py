"""Which device a merge takes, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_device import FakeBackend
from making import by_fisher, linear, merge
from ring_cases import models, noise, plan_of

from mergekit_cl import computing
from mergekit_cl.block import BLOCK
from mergekit_cl.computing import PLAIN, Limits, choose_computing
from mergekit_cl.errors import OptionError
from mergekit_cl.merging import OutputOptions, describe_plan, make_plan
from mergekit_cl.plan import Plan
from mergekit_cl.ring import card
from mergekit_cl.ring.measure import measure, typical_step, work_of
from mergekit_cl.ring.predict import Choice, Rates

AUTO = Limits("auto", 2, None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tensors = [{"w": noise(2 * BLOCK, torch.bfloat16, k), "n": torch.arange(3)} for k in (1, 2)]
    return models(folder, tensors, with_fisher=True)


@pytest.fixture(scope="module")
def plan(paths: list[Path]) -> Plan:
    return plan_of(by_fisher(paths))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(card, "open_backend", lambda named: backend)
    monkeypatch.setattr("mergekit_cl.merge.fisher.can_be_asked", lambda tensor: False)
    return backend


def unmeasured(*_: object) -> Rates:
    raise AssertionError("nothing is to be measured")


def test_without_a_gpu_nothing_is_measured(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(computing, "measure", unmeasured)
    found = choose_computing(AUTO, plan, report=True, averages=False)
    assert (found.device, found.ring, found.workers) == ("cpu", None, 2)
    assert found.reason == "no CUDA GPU is visible here"


def test_a_plain_average_is_known_to_gain_nothing(
    plan: Plan, gpu: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "measure", unmeasured)
    found = choose_computing(AUTO, plan, report=False, averages=True)
    assert (found.device, found.reason) == ("cpu", PLAIN)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_prediction_decides(
    plan: Plan, gpu: FakeBackend, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    made = Choice("cuda" if device == "cuda" else "cpu", "so it was predicted")
    monkeypatch.setattr(computing, "choose", lambda work, rates: made)
    found = choose_computing(AUTO, plan, report=True, averages=True)
    assert found.device == {"cpu": "cpu", "cuda": "cuda:0"}[device]
    assert found.reason == "so it was predicted"
    assert (found.ring is not None) == (device == "cuda")
    assert gpu.closed


def test_too_little_memory_for_a_ring_is_the_cpu_and_says_so(plan: Plan, gpu: FakeBackend) -> None:
    little = Limits(
        "auto",
        1,
        choose_computing(Limits("cpu", 1, None), plan, report=True, averages=False).buffer_bytes,
    )
    found = choose_computing(little, plan, report=True, averages=False)
    assert found.device == "cpu"
    assert "the memory limit is too small" in found.reason


def test_a_named_device_is_taken_as_asked(plan: Plan, gpu: FakeBackend) -> None:
    on_card = choose_computing(Limits("cuda:0", 2, None), plan, report=True, averages=True)
    assert (str(on_card.device), on_card.reason) == ("cuda:0", "as asked")
    assert on_card.ring is not None
    assert on_card.buffer_bytes == on_card.ring.nbytes
    on_cpu = choose_computing(Limits("cpu", 2, None), plan, report=True, averages=True)
    assert (on_cpu.device, on_cpu.reason) == ("cpu", "as asked")
    with pytest.raises(OptionError):
        choose_computing(Limits("cuda:1", 2, None), plan, report=True, averages=True)


def test_a_measurement_reads_no_input(
    paths: list[Path], plan: Plan, monkeypatch: pytest.MonkeyPatch, gpu: FakeBackend
) -> None:
    from mergekit_cl.checkpoint import Checkpoint
    from mergekit_cl.ring.budget import ring_size

    monkeypatch.setattr(Checkpoint, "read", unmeasured)
    step = typical_step(plan)
    assert step is not None
    assert step.name == "w"
    rates = measure(step, ring_size(2, None, plan), True, gpu)
    gpu.close()
    assert min(rates.copied, rates.hashed, rates.cpu_merged, rates.card_merged) > 0
    assert min(rates.sent, rates.fetched) > 0
    assert rates.start >= 0


def test_a_slow_bus_is_measured_as_slow(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_cl.ring.budget import ring_size

    monkeypatch.setattr("mergekit_cl.merge.fisher.can_be_asked", lambda tensor: False)
    backend = FakeBackend({"into": 0.02, "compute": 0.03})
    step = typical_step(plan)
    assert step is not None
    size = ring_size(2, None, plan)
    rates = measure(step, size, False, backend)
    backend.close()
    assert rates.sent <= size.slot.inputs / 0.02
    assert rates.card_merged <= size.chunk / 0.03


def test_a_plan_in_numbers(plan: Plan) -> None:
    work = work_of(plan, 3)
    assert (work.merged, work.threads) == (2 * BLOCK, 3)
    assert (work.bytes_read, work.bytes_written) == (plan.bytes_read, plan.bytes_written)


def test_the_plan_and_the_end_say_the_same(paths: list[Path], tmp_path: Path) -> None:
    method = linear(paths)
    options = OutputOptions(target=tmp_path / "out", device="cpu")
    told = describe_plan(method, make_plan(method, options), options)["device"]
    assert told == {"name": "cpu", "reason": "as asked"}
    assert merge(method, tmp_path / "out", device="cpu").device == told
    again = merge(linear(paths), tmp_path / "out", device="cpu")
    assert (again.state, again.device) == ("up to date", None)
