"""The command that makes a checkpoint again: a shell's line that gives the same weights."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.merge.linear import normalized
from mergekit_cl.repeating import as_typed, command_again
from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge

LINES = [
    "linear-merge a b",
    "linear-merge a b 'c d' --weights 1,2,4 --dtype bfloat16",
    "linear-merge a b --weights 0.3,-0.7 --no-normalize --base 'c d'",
    "linear-merge a b --copy model.norm.weight --include 'model.*' --carry --dtype bfloat16",
    "fisher-merge a b --weights 0.9,0.1 --normalize l2 --floor 1e-3 --fallback first",
    "fisher-merge a b --fisher b/clmerge/fisher.safetensors --fisher f.safetensors"
    " --allow-stale-fisher",
    "ema-merge a b --decay 0.9",
    "ema-merge a b --half-life 3 --no-carry --no-report",
]


@pytest.fixture
def models(place: Path) -> Path:
    checkpoint(place / "c d", weights(3))
    sidecar(place / "b", 7, at=place / "f.safetensors")
    return place


def made(folder: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(folder, "clmerge/manifest.json").read_text())
    return found


@pytest.mark.parametrize("line", LINES)
def test_the_command_gives_the_same_weights(models: Path, line: str) -> None:
    assert clmerge(*shlex.split(line), "-o", "one").code == 0
    again = command_again(made("one"))
    assert again is not None
    words = shlex.split(again)
    assert words[0] == "clmerge"
    assert clmerge(*words[1:], "-o", "two").code == 0
    first, second = made("one"), made("two")
    assert first["tensors"] == second["tensors"]
    assert first["outputs"][0]["weights_digest"] == second["outputs"][0]["weights_digest"]  # type: ignore[index]
    assert command_again(second) == again


def test_an_average_whose_decays_differ_has_no_line(models: Path) -> None:
    assert (
        clmerge("ema-merge", "a", "b", "c d", "--decay", "0.9", "--warmup", "-o", "one").code == 0
    )
    assert command_again(made("one")) is None


def test_defaults_are_left_out(models: Path) -> None:
    assert clmerge("fisher-merge", "a", "b", "-o", "one").code == 0
    assert command_again(made("one")) == "clmerge fisher-merge a b"


def test_short_weights_are_told_as_they_are_typed() -> None:
    assert as_typed(normalized([1, 2, 4])) == [1.0, 2.0, 4.0]
    assert as_typed(normalized([1, 1, 1])) == []


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=5))
def test_what_is_told_gives_the_weights_that_were_used(given_weights: list[float]) -> None:
    used = normalized(given_weights)
    told = as_typed(used) or [1.0] * len(used)
    assert normalized(told) == pytest.approx(used, rel=1e-15)
