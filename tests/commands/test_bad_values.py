"""Numbers that no merge can use: NaN, infinities, integers that differ, weights that cancel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge, refused

NAME = "model.layers.1.mlp.up_proj.weight"
NAN = b"\x00\x00\xc0\x7f"  # float32, little-endian
HINT = "repair it, or give --allow-nonfinite"


def spoiled(folder: Path, value: float, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint in which one element of `NAME` is `value`, with its sidecar."""
    tensors = weights(2, dtype)
    tensors[NAME][3, 5] = value
    checkpoint(folder, tensors)
    sidecar(folder, 2)
    return folder


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nan_and_infinity_are_refused_by_name(
    place: Path, command: str, value: float, dtype: torch.dtype
) -> None:
    spoiled(place / "c", value, dtype)
    says = ("an input holds NaN or Inf", f"c: {NAME}", HINT)
    refused(command, "a", "c", unchanged=place, says=says)


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_in_an_input_of_weight_0(
    place: Path, command: str, value: float
) -> None:
    spoiled(place / "c", value)
    says = ("an input holds NaN or Inf", f"c: {NAME}")
    refused(command, "a", "c", "--weights", "1,0", unchanged=place, says=says)


@pytest.mark.parametrize("which", ["a c", "c a"])
def test_nan_is_refused_in_a_tensor_that_is_only_copied(place: Path, which: str) -> None:
    spoiled(place / "c", float("nan"))
    says = ("an input holds NaN or Inf", f"c: {NAME}")
    line = ("linear-merge", *which.split(), "--copy", NAME)
    refused(*line, unchanged=place, says=says)


def test_nan_is_refused_in_a_base(place: Path) -> None:
    spoiled(place / "c", float("nan"))
    line = ("linear-merge", "a", "b", "--weights", "1,1", "--no-normalize", "--base", "c")
    refused(*line, unchanged=place, says=("an input holds NaN or Inf", f"c: {NAME}"))


@pytest.mark.parametrize("sums", [True, False])
def test_nan_in_a_sidecar_is_refused(place: Path, sums: bool) -> None:
    fisher = load_file(place / "b/clmerge/fisher.safetensors")
    fisher[NAME][0, 0] = float("nan")
    sidecar(place / "b", values=fisher, sums=sums)
    refused("fisher-merge", "a", "b", unchanged=place, says=("b/clmerge/fisher.safetensors",))


def test_nan_in_a_sidecar_whose_sums_hide_it_is_refused_by_name(place: Path) -> None:
    honest = load_file(place / "b/clmerge/fisher.safetensors")
    sidecar(place / "b", values=honest)
    path = place / "b/clmerge/fisher.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = NAN
    path.write_bytes(bytes(content))
    says = ("an input holds NaN or Inf", "b/clmerge/fisher.safetensors: ")
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize("report", [[], ["--no-report"]])
def test_allow_nonfinite_lets_them_through(place: Path, command: str, report: list[str]) -> None:
    spoiled(place / "c", float("nan"))
    result = clmerge(command, "a", "c", "--allow-nonfinite", *report)
    assert result.code == 0, result.err
    merged = load_file(place / "merged" / "model.safetensors")[NAME]
    assert int(merged.isnan().sum()) == 1
    assert merged[3, 5].isnan()


def test_an_infinity_in_which_all_agree_is_kept_with_allow_nonfinite(place: Path) -> None:
    for name in ("c", "d"):
        spoiled(place / name, float("-inf"))
    assert clmerge("linear-merge", "c", "d", "--allow-nonfinite").code == 0
    merged = load_file(place / "merged" / "model.safetensors")[NAME]
    assert merged[3, 5] == float("-inf")
    assert int(merged.isfinite().sum()) == merged.numel() - 1


def test_a_result_too_large_for_the_output_is_refused(place: Path) -> None:
    spoiled(place / "c", 1e6)
    spoiled(place / "d", 1e6)
    line = ("linear-merge", "c", "d", "--dtype", "float16")
    refused(*line, unchanged=place, says=("overflows", NAME, "--allow-nonfinite"))


def test_a_sum_too_large_for_the_computation_is_refused(place: Path) -> None:
    spoiled(place / "c", 3e38)
    line = ("linear-merge", "c", "c", "--weights", "2,2", "--no-normalize")
    refused(*line, unchanged=place, says=("the merge overflows", NAME, "use smaller weights"))


def test_weights_that_sum_to_0_are_wrong_usage(place: Path) -> None:
    says = ("the weights sum to 0", "--weights 1.0,-1.0", "a sum other than 0")
    refused("linear-merge", "a", "b", "--weights", "1,-1", unchanged=place, says=says, code=2)
    says = ("the weights sum to 0", "--weights 0.0,0.0")
    refused("fisher-merge", "a", "b", "--weights", "0,0", unchanged=place, says=says, code=2)


def test_weights_must_be_as_many_as_the_inputs(place: Path) -> None:
    says = ("2 inputs need 2 weights", "--weights 1.0,2.0,3.0", "one weight per input")
    for command in ("linear-merge", "fisher-merge"):
        refused(command, "a", "b", "--weights", "1,2,3", unchanged=place, says=says, code=2)


def test_a_fisher_merge_takes_no_negative_weight(place: Path) -> None:
    says = ("weights of 0 or more", "--weights")
    refused("fisher-merge", "a", "b", "--weights", "2,-1", unchanged=place, says=says, code=2)


def test_no_normalize_without_weights_is_wrong_usage(place: Path) -> None:
    says = ("--no-normalize needs weights", "add --weights w1,w2")
    refused("linear-merge", "a", "b", "--no-normalize", unchanged=place, says=says, code=2)


def with_integers(folder: Path, seed: int, ids: list[int], steps: int) -> None:
    more = {
        "model.position_ids": torch.tensor(ids),
        "model.bn.num_batches_tracked": torch.tensor(steps),
    }
    checkpoint(folder, {**weights(seed), **more})
    sidecar(folder, seed)


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_integer_buffers_that_differ_are_refused_by_name(place: Path, command: str) -> None:
    with_integers(place / "c", 1, [0, 1, 2], 7)
    with_integers(place / "d", 2, [0, 1, 3], 7)
    says = ("an integer tensor differs", "model.position_ids: c and d")
    refused(command, "c", "d", unchanged=place, says=says)


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_integer_buffers_that_agree_are_copied_and_counters_come_from_the_newest(
    place: Path, command: str
) -> None:
    with_integers(place / "c", 1, [0, 1, 2], 7)
    with_integers(place / "d", 2, [0, 1, 2], 9)
    assert clmerge(command, "c", "d").code == 0
    merged = load_file(place / "merged" / "model.safetensors")
    assert merged["model.position_ids"].tolist() == [0, 1, 2]
    assert merged["model.bn.num_batches_tracked"].item() == 9
