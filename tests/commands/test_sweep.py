"""`--sweep` and `--weights auto`: what is predicted is what the merge then reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands.checkpoints import CONFIG, checkpoint, sidecar, weights
from tests.commands.comparisons import joined, wide
from tests.commands.running import clmerge
from tests.commands.toys import EMBED, LAYER0, LAYER1, NORM
from tests.commands.trees import snapshot

COMMANDS = ("linear-merge", "fisher-merge")


def run(*line: str | Path) -> Any:
    result = clmerge(*line, "--json")
    assert result.code == 0, result
    return result.document


def sweep(*line: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = run(*line)["sweep"]
    return found


def report(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "clmerge/divergence.json").read_text())
    return found


def typed(point: list[float]) -> str:
    return ",".join(map(str, point))


def check_against_merges(line: list[str], places: list[int] | None = None) -> dict[str, Any]:
    """Every point (or those of places) is what a merge into float32 with its weights reports."""
    found = sweep(*line, "--sweep", "5")
    for number in places if places is not None else range(len(found["weights"])):
        chosen = typed(found["weights"][number])
        out = f"point{number}"
        run(*line, "--weights", chosen, "--dtype", "float32", "-o", out, "--threads", "1")
        for row in report(out)["model_by_parent"]:
            predicted = found["predicted_kl"][row["parent"]][number]
            assert predicted == pytest.approx(row["predicted_kl"], rel=1e-6, abs=1e-12), chosen
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("models", ["ab", "abc"])
def test_every_prediction_is_what_the_merge_reports(three: Path, command: str, models: str) -> None:
    places = None if models == "ab" else [0, 2, 7, 11]
    found = check_against_merges([command, *models], places)
    assert len(found["weights"]) == (5 if models == "ab" else 16)
    assert list(found["predicted"]) == list(models)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "more",
    [
        ["--copy", LAYER1, "--copy", NORM],
        ["--include", LAYER0],
        ["--exclude", EMBED, "--base", "c"],
    ],
)
def test_tensors_that_are_copied_count_as_they_do_in_the_merge(
    three: Path, command: str, more: list[str]
) -> None:
    check_against_merges([command, "a", "b", *more], [0, 1, 4])


@pytest.mark.parametrize(
    "more",
    [
        ["--normalize", "none"],
        ["--normalize", "l2", "--floor", "0"],
        ["--fallback", "base", "--base", "c"],
        ["--fallback", "first"],
    ],
)
def test_a_fisher_merge_is_looked_at_with_its_own_options(three: Path, more: list[str]) -> None:
    for model, seed in (("a", 1), ("b", 2)):
        values = {name: torch.rand(t.shape) for name, t in weights(seed).items()}
        for tensor in values.values():
            tensor.view(-1)[::3] = 0
        sidecar(three / model, values=values)
    check_against_merges(["fisher-merge", "a", "b", *more], [0, 1, 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("command", COMMANDS)
def test_other_dtypes_are_predicted_as_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, dtype: torch.dtype
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        sidecar(checkpoint(tmp_path / name, weights(seed, dtype)), seed)
    check_against_merges([command, "a", "b", "c"], [0, 2, 5, 9])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("vocab", ["common", "base"])
def test_of_vocabularies_of_different_sizes_the_common_rows_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, vocab: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (name, rows) in enumerate((("a", 12), ("b", 10))):
        tensors = weights(seed)
        tensors[EMBED] = tensors[EMBED][:rows].clone()
        folder = checkpoint(tmp_path / name, tensors, {**CONFIG, "vocab_size": rows})
        sidecar(folder, seed)
    check_against_merges([command, "a", "b", "--vocab", vocab], [0, 1, 4])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tied_head_counts_once_however_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, "tie_word_embeddings": True}
    for seed, name in enumerate("ab"):
        tensors = weights(seed)
        folder = checkpoint(tmp_path / name, tensors, config)
        sidecar(folder, seed)
        if name == "b":
            twice = {**tensors, "lm_head.weight": tensors[EMBED].clone()}
            from safetensors.torch import save_file

            save_file(twice, folder / "model.safetensors", metadata={"format": "pt"})
    check_against_merges([command, "a", "b"], [1])


@pytest.mark.parametrize("command", COMMANDS)
def test_residuals_of_rounding_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abcd"):
        sidecar(checkpoint(tmp_path / name, weights(seed, torch.bfloat16)), seed)
    run("linear-merge", "a", "b", "--carry", "-o", "ab")
    run("linear-merge", "c", "d", "--carry", "-o", "cd")
    for name, seed in (("ab", 5), ("cd", 6)):
        sidecar(tmp_path / name, seed)
    found = check_against_merges([command, "ab", "cd", "--carry"], [0, 1, 3])
    assert found["predicted_kl"]["ab"][0] > 0  # what its own rounding took


def test_the_best_weights_of_a_linear_merge_are_those_of_a_fine_search(three: Path) -> None:
    parents = {name: wide(three / name) for name in "abc"}
    fishers = {name: wide_fisher(name) for name in "abc"}
    names = list(parents["a"])
    x = np.stack([joined(parents[name], names) for name in "abc"])
    f = np.stack([joined(fishers[name], names) for name in "abc"])

    def losses(w: Any) -> Any:
        return [float((f[p] * (w @ x - x[p]) ** 2).sum() / 2) / 7 for p in range(3)]

    found = sweep("linear-merge", "a", "b", "c", "--sweep", "3")
    assert found["best_of"] == "all weights"
    assert found["measure"] == "predicted_kl_per_token"  # 70 tokens in 10 examples
    best = np.array(found["best"]) / sum(found["best"])
    assert list(found["best_predicted"].values()) == pytest.approx(losses(best), rel=1e-9)
    reached = max(losses(best))
    draws = np.random.default_rng(0).dirichlet(np.ones(3), 3000)
    near = best + np.random.default_rng(1).normal(size=(3000, 3)) * 1e-3
    near = np.abs(near) / np.abs(near).sum(1, keepdims=True)
    assert reached <= min(max(losses(w)) for w in [*draws, *near, np.ones(3) / 3]) * (1 + 1e-3)


def wide_fisher(name: str) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    stored = load_file(f"{name}/clmerge/fisher.safetensors")
    return {key: tensor.double().reshape(-1).numpy() for key, tensor in stored.items()}


def test_the_best_of_a_fisher_merge_is_the_point_of_the_smallest_worst_loss(three: Path) -> None:
    found = sweep("fisher-merge", "a", "b", "--sweep", "11")
    assert found["best_of"] == "these points"
    worst = [max(pair) for pair in zip(*found["predicted"].values(), strict=True)]
    assert found["best"] == found["weights"][worst.index(min(worst))]


def test_losses_are_calibrated_where_every_parent_is(place: Path) -> None:
    sidecar(place / "a", 1, calibration=3.0, tokens=50)
    sidecar(place / "b", 2, calibration=0.5, tokens=80)
    found = sweep("linear-merge", "a", "b", "--sweep", "3")
    assert found["measure"] == "predicted_loss"
    for parent, factor in (("a", 3.0 / 5), ("b", 0.5 / 8)):
        expected = np.array(found["predicted_kl"][parent]) * factor
        np.testing.assert_allclose(found["predicted"][parent], expected, rtol=1e-12)
    run("linear-merge", "a", "b", "--weights", "auto", "--dtype", "float32")
    for row in report("merged")["model_by_parent"]:
        told = found["best_predicted"][row["parent"]]
        assert row["predicted_loss"] == pytest.approx(told, rel=1e-6)
    sidecar(place / "b", 2)
    document = run("linear-merge", "a", "b", "--sweep", "3")
    assert document["sweep"]["measure"] == "predicted_kl_per_token"
    assert [note for note in document["notes"] if "without a calibration of b" in note]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sweep_writes_nothing_and_names_the_merge_to_type_next(three: Path, command: str) -> None:
    before = snapshot(three)
    line = [command, "a", "b", "--sweep", "3", "--exclude", "model.layers.1.*", "-o", "x y"]
    document = run(*line)
    shown = clmerge(*line)
    assert snapshot(three) == before
    assert document["state"] == "swept"
    best = ",".join(f"{weight:g}" for weight in document["sweep"]["best"])
    told = "--output 'x y' --exclude 'model.layers.1.*'"
    assert document["next"] == f"clmerge {command} a b {told} --weights {best}"
    assert f"next: {document['next']}" in shown.out
    assert "merges of every block" in shown.err or "sums for all weights" in shown.err
    rows = [row for row in shown.out.splitlines() if row.endswith("best")]
    assert len(rows) == 1
    assert rows[0].startswith(best)


@pytest.mark.parametrize("command", COMMANDS)
def test_auto_merges_as_the_best_weights_would_and_records_the_sweep(
    three: Path, command: str
) -> None:
    found = sweep(command, "a", "b", "c", "--sweep", "11")
    document = run(command, "a", "b", "c", "--weights", "auto", "-o", "auto")
    assert document["sweep"] == found  # 11 points unless told otherwise
    run(command, "a", "b", "c", "--weights", typed(found["best"]), "-o", "given")
    auto, given = (Path(f, "model.safetensors").read_bytes() for f in ("auto", "given"))
    assert auto == given
    made = json.loads(Path("auto/clmerge/manifest.json").read_text())["options"]
    by_hand = json.loads(Path("given/clmerge/manifest.json").read_text())["options"]
    assert made["weights"] == by_hand["weights"]
    assert (made["weights_from"], made["sweep"]) == ("auto", 11)
    recorded = report("auto")["sweep"]
    assert recorded == found
    assert "sweep" not in report("given")
    again = run(command, "a", "b", "c", "--weights", "auto", "-o", "auto")
    assert again["state"] == "up to date"


def test_auto_says_its_curve_beside_the_progress_and_leaves_stdout_alone(place: Path) -> None:
    result = clmerge("fisher-merge", "a", "b", "--weights", "auto", "--sweep", "4")
    assert result.code == 0
    assert result.out == ""
    assert "predicted loss by weights" in result.err
    assert report("merged")["sweep"]["points"] == 4
    assert clmerge("fisher-merge", "a", "b", "--weights", "auto", "--quiet", "-o", "q").err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_threads_and_memory_change_no_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    for name in "ab":  # two spans of float32, many blocks
        big = torch.randn(2**22 + 3 * 2**17 + 5, generator=draw)
        sidecar(checkpoint(tmp_path / name, {"w": big, "v": big[:100] * 2}), ord(name))
    one = sweep(command, "a", "b", "--sweep", "3", "--threads", "1")
    many = sweep(command, "a", "b", "--sweep", "3", "--threads", "3", "--memory", "200MiB")
    assert one == many
    assert one["predicted_kl"]["a"][1] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_reads_headers_and_writes_nothing(place: Path, command: str) -> None:
    before = snapshot(place)
    plan = run(command, "a", "b", "--sweep", "7", "--dry-run", "--threads", "1")
    assert plan["sweep"]["points"] == 7
    sizes = [sum(t.numel() * 4 for t in weights(1).values())] * 4
    assert plan["sweep"]["bytes_read"] == sum(sizes)
    assert plan["sweep"]["workers"] == 1
    both = run(command, "a", "b", "--weights", "auto", "--dry-run")
    assert both["sweep"]["points"] == 11
    assert both["tensors"] == {"merged": 4, "copied": 0}
    assert clmerge(command, "a", "b", "--sweep", "7", "--dry-run").out.count("\n") == 1
    assert snapshot(place) == before


def test_equal_models_are_merged_with_equal_weights(place: Path) -> None:
    found = sweep("linear-merge", "a", "a", "--sweep", "3")
    assert found["best"] == [0.5, 0.5]
    assert found["predicted"] == {"a": [0, 0, 0], "a (2)": [0, 0, 0]}
