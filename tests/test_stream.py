"""The bytes of a merge depend on inputs and options alone, not on how the work was divided."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from making import (
    by_fisher,
    fisher_like,
    linear,
    merge,
    model_tensors,
    silent,
    weight_bytes,
    write_model,
    write_sidecar,
)

from mergekit_cl import block, digest, stream
from mergekit_cl.errors import Interrupted, OptionError
from mergekit_cl.merging import OutputOptions, make_plan
from mergekit_cl.stream import buffer_bytes, default_workers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    paths = []
    for k in range(3):
        tensors = {**model_tensors(k), "ids": torch.arange(5)}
        paths.append(write_model(folder / str(k), tensors))
        write_sidecar(paths[-1], fisher_like(tensors, k))
    return paths


@pytest.fixture(scope="module")
def expected(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("expected") / "merged"
    merge(by_fisher(inputs), target, threads=1)
    return target


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of 64 elements and pieces of 512 bytes, so that small tensors are many of each."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (block, stream):
            patch.setattr(module, "BLOCK", 64)
        for module in (digest, stream):
            patch.setattr(module, "PIECE_BYTES", 512)
        yield


def divergence(target: Path) -> Any:
    return json.loads((target / "clmerge/divergence.json").read_bytes())


def jittered(seed: int) -> Callable[[str, int], Callable[[int], None]]:
    """Progress that sleeps now and then, so that workers finish in another order each time."""
    draw = Random(seed)
    return lambda title, total: lambda done: time.sleep(draw.choice([0, 0, 0.002]))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(100, 4000), st.integers(0, 1000))
def test_workers_files_and_order_change_no_bit(
    inputs: list[Path],
    expected: Path,
    tmp_path_factory: pytest.TempPathFactory,
    threads: int,
    limit: int,
    seed: int,
) -> None:
    target = tmp_path_factory.mktemp("merged") / "out"
    merge(by_fisher(inputs), target, jittered(seed), threads=threads, shard_size=limit)
    assert weight_bytes(target) == weight_bytes(expected)
    assert divergence(target) == divergence(expected)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 4), st.integers(100, 4000), st.integers(0, 1000))
def test_the_size_of_blocks_and_pieces_changes_no_weight(
    inputs: list[Path],
    expected: Path,
    tmp_path_factory: pytest.TempPathFactory,
    threads: int,
    limit: int,
    seed: int,
) -> None:
    target = tmp_path_factory.mktemp("merged") / "out"
    # The digests of the sidecars are of pieces of the usual size: their check is left out.
    options = {"threads": threads, "shard_size": limit, "allow_stale": True}
    with small_blocks():
        outcome = merge(by_fisher(inputs), target, jittered(seed), **options)
    assert weight_bytes(target) == weight_bytes(expected)
    # Spans of one tensor are put together in its order, whoever finished first.
    found = weight_bytes(target)["model.embed_tokens.weight"][2]
    pieces = [blake3(found[i : i + 512]).digest() for i in range(0, len(found), 512)]
    digest = outcome.manifest["tensors"]["model.embed_tokens.weight"]["digest"]
    assert digest == blake3(b"".join(pieces)).hexdigest()
    one, other = divergence(target)["model"], divergence(expected)["model"]
    # There is neither a base nor a calibration.
    assert {name for name in one if one[name] is None} == {"predicted_loss", "sign_conflict"}
    known = {name: value for name, value in other.items() if value is not None}
    assert {name: one[name] for name in known} == pytest.approx(known, rel=1e-9)


def test_a_tensor_of_many_pieces_is_whole(tmp_path: Path) -> None:
    size = 2**23 + 12345  # bf16: one 16 MiB piece and a part of a second
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator).bfloat16() for _ in range(2)]
    paths = [write_model(tmp_path / str(k), {"w": v}) for k, v in enumerate(values)]
    outcome = merge(linear(paths, weights=(0.3, 0.7)), tmp_path / "out", threads=2, report=False)
    data = weight_bytes(tmp_path / "out")["w"][2]
    digest = blake3(blake3(data[: 2**24]).digest() + blake3(data[2**24 :]).digest()).hexdigest()
    assert outcome.manifest["tensors"]["w"]["digest"] == digest
    a, b = (v[-1000:].float() for v in values)
    tail = torch.frombuffer(bytearray(data[-2000:]), dtype=torch.bfloat16).float()
    torch.testing.assert_close(tail, 0.3 * a + 0.7 * b, rtol=2**-7, atol=2**-10)


def test_every_byte_is_told_to_the_progress(inputs: list[Path], tmp_path: Path) -> None:
    told: list[int] = []
    totals: list[int] = []

    def start(title: str, total: int) -> Callable[[int], None]:
        totals.append(total)
        return told.append

    merge(linear(inputs), tmp_path / "out", start)
    headers = sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little")
        for path in (tmp_path / "out").glob("*.safetensors")
    )
    assert totals[0] - headers <= sum(told) <= totals[0]


def test_threads_of_torch_are_given_back(inputs: list[Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        merge(linear(inputs), tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_worker_that_fails_stops_the_others(inputs: list[Path], tmp_path: Path) -> None:
    calls = []

    def start(title: str, total: int) -> Callable[[int], None]:
        def advance(done: int) -> None:
            calls.append(done)
            raise Interrupted(2)

        return advance

    with pytest.raises(Interrupted):
        merge(linear(inputs), tmp_path / "out", start, threads=3)
    assert len(calls) <= 3  # each worker at most once


def test_what_is_finished_is_told_one_shard_at_a_time(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_cl.output.journal import Journal

    inside: list[str] = []
    original = Journal.append

    def slow(self: Journal, entry: dict[str, Any]) -> None:
        assert not inside, "two shards at once"
        inside.append(entry["shard"])
        time.sleep(0.01)
        original(self, entry)
        inside.pop()

    monkeypatch.setattr(Journal, "append", slow)
    merge(linear(inputs), tmp_path / "out", threads=4, shard_size=200)


def test_workers_fit_the_memory_they_are_given(inputs: list[Path], tmp_path: Path) -> None:
    plan = make_plan(by_fisher(inputs), OutputOptions(target=tmp_path / "out"))
    one = buffer_bytes(plan)
    assert one > 0
    assert default_workers(8, None, plan) == 8
    assert default_workers(8, one, plan) == 1
    assert default_workers(8, 3 * one, plan) == 3
    assert default_workers(2, 100 * one, plan) == 2
    assert 1 <= default_workers(None, None, plan) <= 8


def test_too_little_memory_for_one_worker_is_refused_with_what_is_needed(
    inputs: list[Path], tmp_path: Path
) -> None:
    plan = make_plan(linear(inputs), OutputOptions(target=tmp_path / "out"))
    with pytest.raises(OptionError) as caught:
        default_workers(2, buffer_bytes(plan) - 1, plan)
    hint = caught.value.hint or ""
    enough = int(hint.removeprefix("--memory ").removesuffix("MiB")) * 2**20
    assert default_workers(2, enough, plan) >= 1


def test_the_plan_of_more_models_needs_more_memory(inputs: list[Path], tmp_path: Path) -> None:
    options = OutputOptions(target=tmp_path / "out")
    few = buffer_bytes(make_plan(linear(inputs[:2]), options))
    assert buffer_bytes(make_plan(by_fisher(inputs), options)) > few


def test_a_kernel_never_changes_its_inputs_files(inputs: list[Path], tmp_path: Path) -> None:
    before = [(path / "model.safetensors").read_bytes() for path in inputs]
    merge(by_fisher(inputs), tmp_path / "out", silent)
    assert before == [(path / "model.safetensors").read_bytes() for path in inputs]
