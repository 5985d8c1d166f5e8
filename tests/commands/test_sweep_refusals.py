"""What no sweep can be made of, and how that is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge, refused
from tests.commands.toys import NORM

COMMANDS = pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
ASKED = pytest.mark.parametrize("asked", [("--sweep", "5"), ("--weights", "auto")])


@COMMANDS
def test_a_sweep_beside_weights_that_are_given_is_a_usage_error(place: Path, command: str) -> None:
    says = ("--sweep 11 looks for weights, and --weights 0.3,0.7 gives them",)
    line = (command, "a", "b", "--sweep", "11", "--weights", "0.3,0.7")
    refused(*line, unchanged=place, says=says, code=2)


@COMMANDS
@pytest.mark.parametrize("points", ["1", "2", "0", "-3", "1002", "x"])
def test_a_curve_has_at_least_three_points(place: Path, command: str, points: str) -> None:
    line = (command, "a", "b", "--sweep", points)
    refused(*line, unchanged=place, says=("--sweep",), code=2)


def test_weights_that_need_no_sum_have_no_curve(place: Path) -> None:
    line = ("linear-merge", "a", "b", "--sweep", "3", "--no-normalize")
    refused(*line, unchanged=place, says=("--no-normalize",), code=2)


@COMMANDS
@ASKED
def test_a_model_without_a_sidecar_is_named_with_the_command_that_makes_one(
    place: Path, command: str, asked: tuple[str, str]
) -> None:
    shutil.rmtree(place / "b" / "clmerge")
    says = ("a model has no Fisher sidecar", "b: no", "clmerge fisher b --data FILE")
    refused(command, "a", "b", *asked, unchanged=place, says=says)


@COMMANDS
@ASKED
@pytest.mark.parametrize("estimator", ["adam", "empirical"])
def test_sidecars_that_predict_no_loss_are_refused(
    place: Path, command: str, asked: tuple[str, str], estimator: str
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(place / name, seed, estimator=estimator)
    says = ("mc or exact ones", f"fisher.safetensors: {estimator}", "clmerge fisher a --data FILE")
    refused(command, "a", "b", *asked, unchanged=place, says=says)


@COMMANDS
@ASKED
def test_a_sidecar_of_other_weights_is_refused(
    place: Path, command: str, asked: tuple[str, str]
) -> None:
    tensors = weights(2)
    tensors[NORM][3] += 1
    save_file(tensors, place / "b" / "model.safetensors", metadata={"format": "pt"})
    says = ("taken at other weights", "b has changed since", "clmerge fisher b --data FILE")
    more = ["--allow-stale-fisher"] if command == "fisher-merge" else []
    refused(command, "a", "b", *asked, *more, "-q", unchanged=place, says=says)


@COMMANDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(place: Path, command: str, value: float) -> None:
    tensors = weights(3)
    tensors[NORM][3] = value
    sidecar(checkpoint(place / "c", tensors), 3)
    says = ("holds NaN or Inf", f"c: {NORM}")
    line = (command, "a", "c", "--sweep", "3", "--allow-nonfinite", "-q")
    refused(*line, unchanged=place, says=says)


def test_too_little_memory_is_refused_with_what_would_do(place: Path) -> None:
    says = ("the memory limit is too small", "--memory")
    line = ("fisher-merge", "a", "b", "--sweep", "3", "--memory", "1KB")
    refused(*line, unchanged=place, says=says, code=2)


def test_what_no_fisher_speaks_of_is_told(place: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(place / name, seed, leave_out={NORM: "frozen"})
    result = clmerge("linear-merge", "a", "b", "--sweep", "3", "--json")
    assert result.document["sweep"]["without_fisher"] == {"a": [NORM], "b": [NORM]}
    assert [note for note in result.document["notes"] if NORM in note]
    same = {**weights(2), NORM: weights(1)[NORM]}
    shutil.rmtree(place / "b")
    sidecar(checkpoint(place / "b", same), 2, leave_out={NORM: "frozen"})
    result = clmerge("linear-merge", "a", "b", "--sweep", "3", "--json")
    assert result.document["sweep"]["without_fisher"] == {"a": [], "b": []}  # it stays as it is


def test_a_tensor_without_elements_is_no_trouble(place: Path) -> None:
    for name, seed in (("c", 1), ("d", 2)):
        tensors = {**weights(seed), "empty": torch.empty(0, 4)}
        folder = checkpoint(place / name, tensors)
        values = {key: torch.rand(t.shape) for key, t in weights(seed).items()}
        sidecar(folder, seed, values=values)
    assert clmerge("linear-merge", "c", "d", "--sweep", "3").code == 0
