"""A merge as a library call: what is published, recorded, refused, repeated and replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    CONFIG,
    by_fisher,
    files_below,
    fisher_like,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_sidecar,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import MismatchError, NonFiniteError, OutputError
from mergekit_cl.manifest import json_text
from mergekit_cl.plan import Selection


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    paths = []
    for k, name in enumerate("ab"):
        tensors = {**model_tensors(k), "ids": torch.arange(4)}
        paths.append(write_model(tmp_path / name, tensors, CONFIG))
        write_sidecar(paths[-1], fisher_like(tensors, k))
    return paths


def lasting(manifest: Any) -> Any:
    """A manifest without what may differ between two runs of one merge."""
    if isinstance(manifest, dict):
        free = {"seconds", "peak_memory_bytes", "path"}
        return {key: lasting(value) for key, value in manifest.items() if key not in free}
    return [lasting(value) for value in manifest] if isinstance(manifest, list) else manifest


def digest_of(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        digests = checkpoint_digests(checkpoint)
        return weights_digest(
            (t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()
        )


def test_the_manifest_says_how_the_output_was_made(inputs: list[Path], tmp_path: Path) -> None:
    outcome = merge(by_fisher(inputs, weights=(1, 3)), tmp_path / "out")
    found = json.loads((tmp_path / "out/clmerge/manifest.json").read_bytes())
    assert found == outcome.manifest
    assert found["format"] == "clmerge.manifest/1"
    assert found["command"] == "fisher-merge"
    assert found["options"]["weights"] == [0.25, 0.75]
    assert [entry["role"] for entry in found["inputs"]] == ["input", "input", "fisher", "fisher"]
    assert [entry["path"] for entry in found["inputs"][:2]] == [str(path) for path in inputs]
    for entry, path in zip(found["inputs"], inputs, strict=False):
        assert entry["weights_digest"] == digest_of(path)
        (file,) = entry["files"]
        assert file["name"] == "model.safetensors"
        assert file["bytes"] == (path / "model.safetensors").stat().st_size
    (output,) = found["outputs"]
    assert output["weights_digest"] == digest_of(tmp_path / "out")
    assert output["files"][0]["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    with open_checkpoint(tmp_path / "out") as merged:
        digests = checkpoint_digests(merged)
        for name, tensor in merged.tensors.items():
            assert found["tensors"][name] == {
                "digest": digests[name],
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "action": "copied" if name == "ids" else "merged",
            }
    assert {"clmerge", "torch", "safetensors"} <= set(found["versions"])
    assert found["verdict"] is not None
    assert found["seconds"] >= 0
    assert found["peak_memory_bytes"] > 0


def test_two_runs_differ_in_time_memory_and_paths_alone(inputs: list[Path], tmp_path: Path) -> None:
    one = merge(by_fisher(inputs), tmp_path / "one", threads=1)
    other = merge(by_fisher(inputs), tmp_path / "other", threads=3)
    assert lasting(one.manifest) == lasting(other.manifest)
    mine, theirs = files_below(tmp_path / "one"), files_below(tmp_path / "other")
    assert mine.keys() == theirs.keys()
    differing = {name for name in mine if mine[name] != theirs[name]}
    assert differing <= {"clmerge/manifest.json"}


def test_keys_are_sorted_and_no_time_is_written(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "out")
    text = (tmp_path / "out/clmerge/manifest.json").read_text()
    found = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    assert [key for key, _ in found] == sorted(key for key, _ in found)
    tensors = dict(found)["tensors"]
    assert [key for key, _ in tensors] == sorted(key for key, _ in tensors)
    assert text == json_text(json.loads(text)) + "\n"


def test_everything_that_makes_weights_a_model_comes_along(
    inputs: list[Path], tmp_path: Path
) -> None:
    kept = {
        "tokenizer.json": "{}",
        "generation_config.json": "{}",
        "tokenizer.model": "bytes",
        "chat_template.jinja": "{{ x }}",
        "modeling_own.py": "pass",
        "LICENSE": "free",
    }
    left = {"trainer_state.json": "{}", "optimizer.pt": "x", "other.safetensors": "x"}
    for name, text in {**kept, **left}.items():
        (inputs[0] / name).write_text(text)
    (inputs[1] / "added_tokens.json").write_text("{}")
    merge(linear(inputs), tmp_path / "out")
    found = files_below(tmp_path / "out")
    assert set(found) == {
        *kept,
        "README.md",
        "config.json",
        "model.safetensors",
        "clmerge/manifest.json",
        "clmerge/divergence.json",
        "clmerge/report.html",
    }
    assert all(found[name].decode() == text for name, text in kept.items())
    assert found["config.json"] == (inputs[0] / "config.json").read_bytes()


def test_the_config_says_the_dtype_that_was_written(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "out", dtype="F32")
    found = json.loads((tmp_path / "out/config.json").read_bytes())
    assert found == {**CONFIG, "torch_dtype": "float32"}


def test_only_the_selected_tensors_move(inputs: list[Path], tmp_path: Path) -> None:
    chosen = Selection(include=("lm_head.*",))
    merge(linear(inputs), tmp_path / "out", selection=chosen)
    found, first = weight_bytes(tmp_path / "out"), weight_bytes(inputs[0])
    assert {name for name in first if found[name] != first[name]} == {"lm_head.weight"}


def test_shards_together_are_the_whole(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "whole")
    merge(linear(inputs), tmp_path / "parts", shard_size=600)
    assert weight_bytes(tmp_path / "whole") == weight_bytes(tmp_path / "parts")
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"]) == set(weight_bytes(tmp_path / "whole"))
    assert digest_of(tmp_path / "whole") == digest_of(tmp_path / "parts")


AGAIN = {
    "plain": lambda inputs: linear(inputs),
    "fisher": lambda inputs: by_fisher(inputs),
    "fisher with a base": lambda inputs: by_fisher(inputs, base=inputs[0], fallback="base"),
    "differences": lambda inputs: linear(
        inputs, weights=(0.5, 0.5), normalize=False, base=inputs[0]
    ),
    "in a report only": lambda inputs: linear(inputs, reported=True),
}


@pytest.mark.parametrize("case", AGAIN)
def test_a_finished_identical_command_is_only_confirmed(
    inputs: list[Path], tmp_path: Path, case: str
) -> None:
    first = merge(AGAIN[case](inputs), tmp_path / "out")
    before = files_below(tmp_path / "out")
    again = merge(AGAIN[case](inputs), tmp_path / "out", threads=1)
    assert (first.state, again.state) == ("published", "up to date")
    assert again.manifest == first.manifest
    assert files_below(tmp_path / "out") == before


def test_a_finished_command_with_a_selection_is_only_confirmed(
    inputs: list[Path], tmp_path: Path
) -> None:
    chosen = Selection(exclude=("lm_head.weight",))
    for state in ("published", "up to date"):
        method = by_fisher(inputs, selection=chosen)
        assert merge(method, tmp_path / "out", selection=chosen).state == state


def test_another_command_over_a_finished_output_is_refused(
    inputs: list[Path], tmp_path: Path
) -> None:
    merge(linear(inputs), tmp_path / "out")
    before = files_below(tmp_path)
    for method, options in (
        (linear(inputs, weights=(1, 2)), {}),
        (linear(inputs[::-1]), {}),
        (linear(inputs), {"dtype": "F32"}),
        (by_fisher(inputs), {}),
    ):
        with pytest.raises(OutputError, match="exists") as caught:
            merge(method, tmp_path / "out", **options)
        assert "--force" in (caught.value.hint or "")
    assert files_below(tmp_path) == before


def test_a_model_retrained_in_its_place_is_another_input(
    inputs: list[Path], tmp_path: Path
) -> None:
    merge(linear(inputs), tmp_path / "out")
    write_model(inputs[1], {**model_tensors(9), "ids": torch.arange(4)}, CONFIG)
    with pytest.raises(OutputError, match="exists"):
        merge(linear(inputs), tmp_path / "out")


def test_an_output_that_lost_a_file_is_not_up_to_date(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "out")
    (tmp_path / "out/model.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="exists"):
        merge(linear(inputs), tmp_path / "out")
    assert merge(linear(inputs), tmp_path / "out", force=True).state == "published"


def test_force_replaces_what_this_tool_made(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "out", shard_size=600)
    merge(linear(inputs, weights=(1, 2)), tmp_path / "out", force=True)
    merge(linear(inputs, weights=(1, 2)), tmp_path / "fresh")
    found, fresh = files_below(tmp_path / "out"), files_below(tmp_path / "fresh")
    assert found.keys() == fresh.keys()
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "fresh", "out"]


def poisoned(folder: Path, value: float = float("nan")) -> Path:
    tensors = {**model_tensors(1), "ids": torch.arange(4)}
    tensors["lm_head.weight"][3, 3] = value
    return write_model(folder, tensors, CONFIG)


@pytest.mark.parametrize("limit", [10**9, 300], ids=["one file", "many files"])
def test_nan_in_an_input_is_named_and_leaves_nothing_behind(
    inputs: list[Path], tmp_path: Path, limit: int
) -> None:
    bad = poisoned(tmp_path / "bad")
    before = files_below(tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        merge(linear([inputs[0], bad]), tmp_path / "out", shard_size=limit)
    assert f"{bad}: lm_head.weight" in (caught.value.detail or "")
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_may_be_let_through_and_stays_where_it_was(
    inputs: list[Path], tmp_path: Path, report: bool, value: float
) -> None:
    bad = poisoned(tmp_path / "bad", value)
    method = linear([inputs[0], bad])
    merge(method, tmp_path / "out", allow_nonfinite=True, report=report)
    with open_checkpoint(tmp_path / "out") as merged:
        found = merged.tensor("lm_head.weight")
    assert found.isfinite().logical_not().nonzero().tolist() == [[3, 3]]
    if report:  # undefined is null, never NaN
        text = (tmp_path / "out/clmerge/divergence.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_integers_that_differ_are_named_and_leave_nothing_behind(
    inputs: list[Path], tmp_path: Path
) -> None:
    other = write_model(tmp_path / "c", {**model_tensors(1), "ids": torch.arange(1, 5)}, CONFIG)
    before = files_below(tmp_path)
    with pytest.raises(MismatchError, match="integer") as caught:
        merge(linear([inputs[0], other]), tmp_path / "out")
    assert "ids" in (caught.value.detail or "")
    assert files_below(tmp_path) == before


def test_a_sidecar_of_other_weights_is_refused_and_leaves_nothing_behind(
    inputs: list[Path], tmp_path: Path
) -> None:
    write_model(inputs[1], {**model_tensors(7), "ids": torch.arange(4)}, CONFIG)
    before = files_below(tmp_path)
    with pytest.raises(MismatchError, match="other weights") as caught:
        merge(by_fisher(inputs), tmp_path / "out")
    assert str(inputs[1]) in (caught.value.hint or "")
    assert files_below(tmp_path) == before
    outcome = merge(by_fisher(inputs), tmp_path / "out", allow_stale=True)
    assert outcome.state == "published"
    assert outcome.manifest["options"]["allow_stale_fisher"] is True


def test_a_refused_lossy_merge_publishes_nothing(tmp_path: Path) -> None:
    # Half a step of bf16 less a little: rounding undoes the whole update of one parent.
    one, other = torch.ones(500).bfloat16(), torch.full((500,), 1 + 2**-7).bfloat16()
    inputs = [write_model(tmp_path / n, {"w": t}) for n, t in (("a", one), ("b", other))]
    method = linear(inputs, weights=(0.8, 0.2))
    before = files_below(tmp_path)
    outcome = merge(method, tmp_path / "out", strict=True)
    assert (outcome.state, outcome.lossy) == ("refused", True)
    assert files_below(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    anyway = merge(method, tmp_path / "out", strict=True, publish_anyway=True)
    assert (anyway.state, anyway.lossy) == ("published", True)
    again = merge(method, tmp_path / "out", strict=True)
    assert (again.state, again.lossy) == ("up to date", True)


def test_a_float32_output_loses_nothing_to_rounding(tmp_path: Path) -> None:
    one, other = torch.ones(500).bfloat16(), torch.full((500,), 1 + 2**-7).bfloat16()
    inputs = [write_model(tmp_path / n, {"w": t}) for n, t in (("a", one), ("b", other))]
    outcome = merge(linear(inputs, weights=(0.8, 0.2)), tmp_path / "out", dtype="F32")
    assert not outcome.lossy
    assert outcome.divergence is not None
    for parent in outcome.divergence.model:
        assert parent.metrics["survival"] == pytest.approx(1, abs=1e-6)


def test_without_a_report_there_is_no_verdict(inputs: list[Path], tmp_path: Path) -> None:
    outcome = merge(linear(inputs), tmp_path / "out", report=False)
    assert outcome.divergence is None
    assert outcome.manifest["verdict"] is None
    assert not (tmp_path / "out/clmerge/divergence.json").exists()
    with_report = merge(linear(inputs), tmp_path / "with")
    assert weight_bytes(tmp_path / "with") == weight_bytes(tmp_path / "out")
    assert with_report.divergence is not None


def test_a_manifest_that_is_not_whole_is_not_this_tools_output(
    inputs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out/clmerge").mkdir(parents=True)
    (tmp_path / "out/clmerge/manifest.json").write_text('{"format": "clmerge.manifest/1"}')
    with pytest.raises(OutputError, match="exists"):
        merge(linear(inputs), tmp_path / "out")
