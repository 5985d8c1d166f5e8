"""What a merge says of itself: manifest, divergence, verdict, the last lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.commands.checkpoints import SHAPES, checkpoint, tensor_digest
from tests.commands.running import clmerge
from tests.commands.toys import LAYER0, A, B, fisher_of, merged, run
from tests.commands.trees import snapshot

# The record


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_the_manifest_tells_how_the_output_was_made(place: Path, command: str) -> None:
    run(command, "a", "b", "--weights", "1,3")
    made = json.loads(Path("merged/clmerge/manifest.json").read_text())
    keys = (
        "command format inputs options outputs peak_memory_bytes seconds tensors verdict versions"
    )
    assert " ".join(made) == keys
    assert made["format"] == "clmerge.manifest/1"
    assert made["command"] == command
    assert made["options"]["weights"] == [0.25, 0.75]
    roles = [(source["path"], source["role"]) for source in made["inputs"]]
    assert roles[:2] == [("a", "input"), ("b", "input")]
    assert roles[2:] == [(f"{m}/clmerge/fisher.safetensors", "fisher") for m in "ab"]
    for source in [*made["inputs"], *made["outputs"]]:
        path = Path(source["path"])
        files = [path / "model.safetensors"] if path.is_dir() else [path]
        assert [f["name"] for f in source["files"]] == [file.name for file in files]
        assert [f["bytes"] for f in source["files"]] == [file.stat().st_size for file in files]
        assert len(source["weights_digest"]) == 64
    for name, tensor in merged().items():
        assert made["tensors"][name] == {
            "digest": tensor_digest(tensor),
            "dtype": "F32",
            "shape": list(tensor.shape),
            "action": "merged",
        }


def test_the_divergence_is_measured_on_the_written_weights(place: Path) -> None:
    run("fisher-merge", "a", "b")
    report = json.loads(Path("merged/clmerge/divergence.json").read_text())
    assert report["format"] == "clmerge.divergence/1"
    assert report["parents"] == ["a", "b"]
    found = merged()
    for parent, tensors in (("a", A), ("b", B)):
        fisher = fisher_of(parent)
        (row,) = (
            row for row in report["tensors"] if (row["name"], row["parent"]) == (LAYER0, parent)
        )
        m, p = found[LAYER0].double(), tensors[LAYER0].double()
        assert row["rel_l2"] == pytest.approx(float((m - p).norm() / p.norm()), rel=1e-9)
        assert row["max_abs"] == pytest.approx(float((m - p).abs().max()), rel=1e-9)
        expected = float((fisher[LAYER0] * (m - p).square()).sum() / 2)
        assert row["predicted_kl"] == pytest.approx(expected, rel=1e-9)
        whole = sum(float((fisher[n] * (found[n].double() - tensors[n]) ** 2).sum()) for n in found)
        (model,) = (row for row in report["model_by_parent"] if row["parent"] == parent)
        assert model["predicted_kl"] == pytest.approx(whole / 2, rel=1e-9)
    assert {row["layer"] for row in report["layers"]} == {
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    }


# The verdict


@pytest.fixture
def lossy(place: Path) -> tuple[str, ...]:
    """A merge in bfloat16 that moves b's weights by less than rounding keeps."""
    ones = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    checkpoint(place / "d", ones)
    checkpoint(place / "e", {name: tensor + 2**-7 for name, tensor in ones.items()})
    return ("linear-merge", "d", "e", "--weights", "9,1")


def test_a_lossy_merge_is_published_with_a_verdict_that_says_what_would_help(
    place: Path, lossy: tuple[str, ...]
) -> None:
    result = clmerge(*lossy)
    assert result.code == 0
    assert "verdict: lossy" in result.err
    assert "rounding kept 0% of the update from d (survival below 50%)" in result.err
    assert "try: write float32: --dtype float32" in result.err
    assert Path("merged/model.safetensors").is_file()


def test_strict_publishes_nothing_that_is_lossy(place: Path, lossy: tuple[str, ...]) -> None:
    before = snapshot(place)
    result = clmerge(*lossy, "--strict")
    assert result.code == 10
    assert "not published: --strict" in result.err
    assert snapshot(place) == before
    as_json = clmerge(*lossy, "--strict", "--json")
    assert as_json.code == 10
    assert as_json.document["state"] == "refused"
    assert as_json.document["verdict"]["lossy"] is True
    assert snapshot(place) == before


def test_publish_anyway_publishes_it_and_is_still_exit_10(
    place: Path, lossy: tuple[str, ...]
) -> None:
    line = (*lossy, "--strict", "--publish-anyway")
    assert clmerge(*line).code == 10
    assert Path("merged/model.safetensors").is_file()
    again = clmerge(*line)
    assert again.code == 10
    assert again.err == "merged is up to date\n"


def test_strict_lets_a_good_merge_through(place: Path, lossy: tuple[str, ...]) -> None:
    assert clmerge(*lossy, "--dtype", "float32", "--strict").code == 0
    assert clmerge("linear-merge", "a", "b", "--strict", "-o", "other").code == 0


def test_the_end_of_a_merge_names_verdict_layers_place_and_cost(place: Path) -> None:
    lines = clmerge("fisher-merge", "a", "b").err.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    assert " ".join(lines[heading].split()) == "layer from rel_l2 predicted_kl survival changed"
    assert lines[-3:-1] == ["verdict: ok", "output: merged"]
    assert "B/s read and written, peak memory " in lines[-1]
    told = [line.split() for line in lines[heading + 1 : -3]]
    assert {row[0] for row in told} == {
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    }
    report = json.loads(Path("merged/clmerge/divergence.json").read_text())
    measured = {(row["layer"], row["parent"]): row for row in report["layers"]}
    worst = max(measured, key=lambda key: measured[key]["rel_l2"])
    assert tuple(told[0][:2]) == worst
    for layer, parent, rel_l2, predicted, survival, _ in told:
        row = measured[layer, parent]
        assert (rel_l2, predicted) == (f"{row['rel_l2']:.3g}", f"{row['predicted_kl']:.3g}")
        assert survival == "1"  # float32: rounding lost nothing


def test_nothing_is_cut_where_stderr_is_no_terminal(place: Path) -> None:
    long = "a-model-whose-name-is-longer-than-a-terminal-is-wide-" + "x" * 60
    (place / "a").rename(place / long)
    lines = clmerge("linear-merge", long, "b").err.splitlines()
    assert any(line.startswith("model.layers.1 ") and f" {long} " in line for line in lines)
    assert not any("…" in line for line in lines)
