"""Sidecars that are missing, of other weights, of other kinds: refused before anything is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import SHAPES, checkpoint, sidecar, weights
from tests.commands.running import clmerge, refused

FIRST, SECOND, *_ = SHAPES
FILE = "clmerge/fisher.safetensors"


def said_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as stored:
        found: dict[str, Any] = json.loads(stored.metadata()["clmerge.fisher"])
    return found


def merged(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "merged" / "model.safetensors")


def test_a_missing_sidecar_names_the_command_that_makes_it(place: Path) -> None:
    shutil.rmtree(place / "b" / "clmerge")
    says = ("a model has no Fisher sidecar", f"b: no b/{FILE}", "try: clmerge fisher b --data")
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


def test_a_sidecar_that_is_given_but_not_there_is_refused(place: Path) -> None:
    line = ("fisher-merge", "a", "b", "--fisher", f"a/{FILE}", "--fisher", "nowhere.safetensors")
    refused(*line, unchanged=place, says=("no such file", "nowhere.safetensors"))


def test_a_truncated_sidecar_is_refused(place: Path) -> None:
    whole = (place / "b" / FILE).read_bytes()
    (place / "b" / FILE).write_bytes(whole[:-1])
    refused("fisher-merge", "a", "b", unchanged=place, says=("is truncated", f"b/{FILE}"))


def test_weights_given_as_a_sidecar_are_refused(place: Path) -> None:
    line = ("fisher-merge", "a", "b", "--fisher", f"a/{FILE}", "--fisher", "b/model.safetensors")
    says = ("is no Fisher sidecar", "b/model.safetensors", "try: make one: clmerge fisher")
    refused(*line, unchanged=place, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "metadata is not JSON"),
        ('{"format": "clmerge.fisher/9"}', "'clmerge.fisher/9'; this version reads"),
        ('{"format": "clmerge.fisher/1"}', "lacks estimator, unit, level, examples, tensors"),
        ("[]", "this version reads 'clmerge.fisher/1'"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(place: Path, text: str, says: str) -> None:
    values = load_file(place / "b" / FILE)
    save_file(values, place / "b" / FILE, metadata={"clmerge.fisher": text})
    refused("fisher-merge", "a", "b", unchanged=place, says=(says, f"b/{FILE}"))


def test_a_sidecar_of_weights_that_have_changed_is_refused(place: Path) -> None:
    tensors = load_file(place / "b" / "model.safetensors")
    tensors[SECOND][0, 0] += 1
    save_file(tensors, place / "b" / "model.safetensors", metadata={"format": "pt"})
    says = (
        "a Fisher sidecar was taken at other weights",
        f"b/{FILE}: {SECOND} of b has changed since",
        "clmerge fisher b --data FILE, or --allow-stale-fisher",
    )
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


def test_allow_stale_fisher_takes_it_and_records_that(place: Path) -> None:
    tensors = load_file(place / "b" / "model.safetensors")
    tensors[SECOND][0, 0] += 1
    save_file(tensors, place / "b" / "model.safetensors", metadata={"format": "pt"})
    assert clmerge("fisher-merge", "a", "b", "--allow-stale-fisher").code == 0
    made = json.loads((place / "merged/clmerge/manifest.json").read_text())
    assert made["options"]["allow_stale_fisher"] is True


def test_a_sidecar_of_another_model_is_refused(place: Path) -> None:
    tensors = weights(5)
    tensors[SECOND] = torch.zeros(16, 9)
    other = sidecar(checkpoint(place / "c", tensors), at=place / "c.safetensors")
    line = ("fisher-merge", "a", "b", "--fisher", f"a/{FILE}", "--fisher", other.name)
    says = (
        "belongs to another model",
        f"c.safetensors: {SECOND} is F32 [16, 9], b has F32 [16, 8]",
        "clmerge fisher b --data",
    )
    refused(*line, unchanged=place, says=says)


def test_a_sidecar_with_a_tensor_that_the_model_lacks_is_refused(place: Path) -> None:
    other = checkpoint(place / "c", {**weights(5), "extra.weight": torch.ones(2)})
    given = sidecar(other, at=place / "c.safetensors")
    line = ("fisher-merge", "a", "b", "--fisher", f"a/{FILE}", "--fisher", given.name)
    refused(*line, unchanged=place, says=("another model", "extra.weight", "b has nothing"))


@pytest.mark.parametrize(
    ("key", "value"), [("estimator", "empirical"), ("unit", "optimizer"), ("level", "token")]
)
def test_sidecars_that_do_not_compare_are_refused(place: Path, key: str, value: str) -> None:
    before = said_of(place / "a" / FILE)[key]
    sidecar(place / "b", 2, **{key: value})
    says = (
        f"differ in {key}",
        f"a/{FILE}: {before}",
        f"b/{FILE}: {value}",
        "--allow-mixed-fisher",
    )
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


def test_allow_mixed_fisher_takes_them_and_records_both(place: Path) -> None:
    sidecar(place / "b", 2, estimator="empirical")
    assert clmerge("fisher-merge", "a", "b", "--allow-mixed-fisher").code == 0
    made = json.loads((place / "merged/clmerge/manifest.json").read_text())
    assert made["options"]["estimators"] == ["mc", "empirical"]


def test_a_sidecar_of_zeros_is_refused(place: Path) -> None:
    nothing = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    sidecar(place / "b", values=nothing)
    says = ("says nothing: its values sum to 0", f"b/{FILE}", "rows that carry a loss")
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


def test_every_tensor_without_fisher_is_listed_with_its_reason(place: Path) -> None:
    sidecar(place / "a", 1, leave_out={FIRST: "frozen"})
    sidecar(place / "b", 2, leave_out={FIRST: "frozen", SECOND: "excluded"})
    says = (
        "2 tensors have no Fisher",
        f"{FIRST}: frozen in a/{FILE}",
        f"{FIRST}: frozen in b/{FILE}",
        f"{SECOND}: excluded in b/{FILE}",
        "--on-missing-fisher linear",
    )
    refused("fisher-merge", "a", "b", unchanged=place, says=says)


def test_on_missing_fisher_linear_averages_those_tensors(place: Path) -> None:
    sidecar(place / "b", 2, leave_out={SECOND: "excluded"})
    result = clmerge("fisher-merge", "a", "b", "--on-missing-fisher", "linear")
    assert result.code == 0
    assert f"note: 1 tensors without Fisher: linear: {SECOND}" in result.err
    a, b = weights(1)[SECOND].double(), weights(2)[SECOND].double()
    torch.testing.assert_close(merged(place)[SECOND], ((a + b) / 2).float())


def test_on_missing_fisher_base_copies_the_base(place: Path) -> None:
    sidecar(place / "b", 2, leave_out={SECOND: "excluded"})
    checkpoint(place / "base", 9)
    line = ("fisher-merge", "a", "b", "--on-missing-fisher", "base")
    assert clmerge(*line, "--base", "base").code == 0
    assert torch.equal(merged(place)[SECOND], weights(9)[SECOND])
    assert not torch.equal(merged(place)[FIRST], weights(9)[FIRST])


@pytest.mark.parametrize("option", ["--on-missing-fisher", "--fallback"])
def test_falling_back_to_a_base_needs_one(place: Path, option: str) -> None:
    says = ("falling back to the base needs one", "add --base PATH")
    refused("fisher-merge", "a", "b", option, "base", unchanged=place, says=says, code=2)


def test_a_base_of_other_shapes_is_refused(place: Path) -> None:
    base = weights(9)
    base[SECOND] = torch.zeros(2, 2)
    checkpoint(place / "base", base)
    line = ("fisher-merge", "a", "b", "--fallback", "base", "--base", "base")
    says = ("the base differs", f"base: {SECOND}: the inputs have [16, 8], the base [2, 2]")
    refused(*line, unchanged=place, says=says)


def test_a_float_buffer_merges_linearly_with_a_note(place: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(place / name, seed, leave_out={"model.norm.weight": "buffer"})
    result = clmerge("fisher-merge", "a", "b")
    assert result.code == 0
    assert "note: 1 buffers merge linearly: model.norm.weight" in result.err
    a, b = (weights(seed)["model.norm.weight"].double() for seed in (1, 2))
    torch.testing.assert_close(merged(place)["model.norm.weight"], ((a + b) / 2).float())


def test_a_sidecar_without_sums_is_read_once_more_and_the_run_says_so(place: Path) -> None:
    assert clmerge("fisher-merge", "a", "b", "-o", "with").code == 0
    sidecar(place / "b", 2, sums=False)
    result = clmerge("fisher-merge", "a", "b", "-o", "without")
    assert result.code == 0
    assert f"note: b/{FILE} holds no sums" in result.err
    assert (place / "with/model.safetensors").read_bytes() == (
        place / "without/model.safetensors"
    ).read_bytes()


def test_a_linear_merge_needs_no_sidecar_but_refuses_a_broken_one_it_would_report_with(
    place: Path,
) -> None:
    shutil.rmtree(place / "a" / "clmerge")
    assert clmerge("linear-merge", "a", "b", "-o", "one").code == 0
    (place / "b" / FILE).write_bytes(b"broken")
    refused("linear-merge", "a", "b", unchanged=place, says=("too short", f"b/{FILE}"))
    assert clmerge("linear-merge", "a", "b", "--no-report", "-o", "two").code == 0
