from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import checkpoint, weights
from tests.commands.running import Result, clmerge
from tests.commands.trees import snapshot

WEIGHTS = "model.safetensors"
CARRY = Path("clmerge/carry.safetensors")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "state", weights(1, torch.bfloat16))
    checkpoint(tmp_path / "monday", weights(2, torch.bfloat16))
    checkpoint(tmp_path / "tuesday", weights(3, torch.bfloat16))
    return tmp_path


def ema(*arguments: str) -> Result:
    result = clmerge("ema-merge", *arguments)
    assert result.code == 0, result.err
    return result


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def test_two_updates_at_once_equal_one_after_the_other(place: Path) -> None:
    ema("state", "monday", "tuesday", "--decay", "0.99", "-o", "both")
    ema("state", "monday", "--decay", "0.99", "-o", "first")
    ema("first", "tuesday", "--decay", "0.99", "-o", "second")
    assert same(place / "both" / WEIGHTS, place / "second" / WEIGHTS)
    assert same(place / "both" / CARRY, place / "second" / CARRY)


def test_without_the_residuals_they_do_not(place: Path) -> None:
    ema("state", "monday", "tuesday", "--decay", "0.99", "-o", "both")
    ema("state", "monday", "--decay", "0.99", "-o", "first", "--no-carry")
    assert not (place / "first" / CARRY).exists()
    ema("first", "tuesday", "--decay", "0.99", "-o", "second")
    assert not same(place / "both" / WEIGHTS, place / "second" / WEIGHTS)


def test_a_float32_state_needs_no_residuals(place: Path) -> None:
    checkpoint(place / "wide", weights(1, torch.float32))
    ema("wide", "monday", "--decay", "0.5", "-o", "next")
    assert not (place / "next" / CARRY).exists()
    state, online = weights(1), weights(2, torch.bfloat16)
    for name, found in load_file(place / "next" / WEIGHTS).items():
        exact = (state[name].double() + online[name].double()) / 2
        assert torch.allclose(found.double(), exact, rtol=0, atol=1e-6)


def test_in_place_replaces_the_weights_and_keeps_everything_else(place: Path) -> None:
    (place / "state" / "notes.txt").write_text("mine")
    (place / "state" / "deep").mkdir()
    (place / "state" / "deep" / "more.bin").write_bytes(b"mine too")
    ema("state", "monday", "--decay", "0.9", "-o", "elsewhere")
    ema("state", "monday", "--decay", "0.9", "--in-place")
    assert same(place / "elsewhere" / WEIGHTS, place / "state" / WEIGHTS)
    assert (place / "state" / "notes.txt").read_text() == "mine"
    assert (place / "state" / "deep" / "more.bin").read_bytes() == b"mine too"
    assert sorted(p.name for p in place.iterdir()) == ["elsewhere", "monday", "state", "tuesday"]


def test_in_place_again_is_the_next_update(place: Path) -> None:
    ema("state", "monday", "monday", "--decay", "0.9", "-o", "twice")
    for _ in range(2):
        ema("state", "monday", "--decay", "0.9", "--in-place")
    assert same(place / "twice" / WEIGHTS, place / "state" / WEIGHTS)


def test_warm_up_counts_the_updates_a_state_has_had(place: Path) -> None:
    ema("state", "monday", "tuesday", "--decay", "0.99", "--warmup", "-o", "both")
    ema("state", "monday", "--decay", "0.99", "--warmup", "-o", "first")
    ema("first", "tuesday", "--decay", "0.99", "--warmup", "-o", "second")
    assert same(place / "both" / WEIGHTS, place / "second" / WEIGHTS)
    made = json.loads((place / "second" / "clmerge" / "manifest.json").read_text())
    assert made["updates"] == 2
    assert made["options"]["decays"] == [2 / 11]


def test_counters_come_from_the_newest_input(place: Path) -> None:
    for name, count in (("s", 3), ("o", 9)):
        tensors = {"w": torch.ones(2), "num_batches": torch.tensor(count)}
        checkpoint(place / name, tensors)
    ema("s", "o", "--decay", "0.5", "-o", "next")
    assert int(load_file(place / "next" / WEIGHTS)["num_batches"]) == 9


def test_residuals_of_other_weights_are_refused_and_nothing_changes(place: Path) -> None:
    ema("state", "monday", "--decay", "0.9", "-o", "next")
    save_file(weights(7, torch.bfloat16), place / "next" / WEIGHTS, metadata={"format": "pt"})
    before = snapshot(place)
    result = clmerge("ema-merge", "next", "tuesday", "--decay", "0.9", "-o", "last")
    assert result.code == 1
    assert "rounding residuals belong to other weights" in result.err
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "next"], "an average needs a decay or a half-life"),
        (["-o", "next", "--decay", "0.9", "--half-life", "3"], "both are given"),
        (["--decay", "0.9"], "give either -o NEXT or --in-place"),
        (["--decay", "0.9", "-o", "next", "--in-place"], "give either -o NEXT or --in-place"),
        (["--decay", "1.5", "-o", "next"], "1.5"),
        (["--half-life", "0", "-o", "next"], "0"),
    ],
)
def test_options_that_say_too_little_or_too_much_are_usage_errors(
    place: Path, arguments: list[str], says: str
) -> None:
    before = snapshot(place)
    result = clmerge("ema-merge", "state", "monday", *arguments)
    assert result.code == 2
    assert says in result.err
    assert snapshot(place) == before


def test_a_linear_merge_can_carry_too(place: Path) -> None:
    ema("state", "monday", "--decay", "0.75", "-o", "next")
    line = ("linear-merge", "state", "monday", "--weights", "0.75,0.25", "--carry", "-o", "mean")
    result = clmerge(*line)
    assert result.code == 0, result.err
    one, other = load_file(place / "next" / CARRY), load_file(place / "mean" / CARRY)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
