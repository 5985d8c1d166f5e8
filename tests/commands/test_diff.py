"""`clmerge diff`: every number against float64, and what only one checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.divergence.metrics import NAMES
from tests.commands.checkpoints import SHAPES, checkpoint, sharded, sidecar, weights
from tests.commands.comparisons import check, close, diff, distances, joined, rows, wide
from tests.commands.running import clmerge, refused
from tests.commands.verifications import flip, save

EMBED, LAYER0, LAYER1, NORM = SHAPES


@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ],
    ids=str,
)
def test_every_metric_is_that_of_the_exact_values(
    tmp_path: Path, dtype: torch.dtype, other: torch.dtype
) -> None:
    m = checkpoint(tmp_path / "m", weights(1, dtype))
    near = {name: t.to(other) + 0.01 * (t > 1) for name, t in weights(1, dtype).items()}
    p = checkpoint(tmp_path / "p", {name: t.to(other) for name, t in near.items()})
    fisher = load_file(sidecar(p, 5))
    document = diff(m, p)
    f = {name: t.double().reshape(-1).numpy() for name, t in fisher.items()}
    ours, theirs = wide(m), wide(p)
    for name in SHAPES:
        close(rows(document)[name, str(p)], distances(ours[name], theirs[name], f[name]))
    (model,) = document["model_by_parent"]
    every = list(SHAPES)
    whole = distances(joined(ours, every), joined(theirs, every), joined(f, every))
    close(model, whole)
    close(document["model"], whole)
    assert model["survival"] is None
    layer = rows(document, "layers")["model.layers.0", str(p)]
    close(layer, distances(ours[LAYER0], theirs[LAYER0], f[LAYER0]))


def test_equal_checkpoints_are_at_no_distance(place: Path) -> None:
    document = diff("a", "a")
    model = document["model"]
    assert (model["rel_l2"], model["max_abs"], model["changed"], model["predicted_kl"]) == (0,) * 4
    assert model["cosine"] == pytest.approx(1, abs=1e-15)
    assert document["verdict"]["lossy"] is False


def test_a_merge_is_told_with_the_numbers_it_recorded_itself(place: Path) -> None:
    line = ("fisher-merge", "a", "b", "--dtype", "bfloat16", "-q")
    assert clmerge(*line).code == 0
    written = json.loads(Path("merged/clmerge/divergence.json").read_text())
    for parent in ("a", "b"):
        document = diff("merged", parent)
        (model,) = document["model_by_parent"]
        (expected,) = (row for row in written["model_by_parent"] if row["parent"] == parent)
        assert expected["survival"] is not None
        same(model, expected)
        for kind in ("tensors", "layers"):
            for key, row in rows(document, kind).items():
                same(row, rows(written, kind)[key])


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for metric in NAMES:
        if expected[metric] is None:
            assert found[metric] is None, metric
        else:
            assert found[metric] == pytest.approx(expected[metric], rel=1e-9), metric


def test_what_rounding_took_is_not_believed_of_other_weights(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "--dtype", "bfloat16", "-q").code == 0
    assert diff("merged", "a")["model"]["survival"] is not None
    checkpoint(place / "like-a", 1)  # the same weights at another place
    assert diff("merged", "like-a")["model"]["survival"] is not None
    checkpoint(place / "c", 3)
    assert diff("merged", "c")["model"]["survival"] is None
    flip(place / "merged/model.safetensors", NORM)
    changed = diff("merged", "a")
    assert changed["model"]["survival"] is None
    assert all(row["survival"] is None for row in changed["tensors"])


def test_of_a_part_of_the_tensors_only_the_parts_own_rounding_is_told(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "--dtype", "bfloat16", "-q").code == 0
    document = diff("merged", "a", "--include", "*layers.0*", "--include", "*norm*")
    assert sorted(row["name"] for row in document["tensors"]) == [LAYER0, NORM]
    assert document["model"]["survival"] is None
    assert all(row["survival"] is not None for row in document["layers"])
    rest = diff("merged", "a", "--exclude", "*layers.0*", "--exclude", "*norm*")
    assert sorted(row["name"] for row in rest["tensors"]) == [EMBED, LAYER1]


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"format": "clmerge.divergence/1"}', "\xff"])
def test_a_record_that_cannot_be_understood_tells_nothing(place: Path, broken: str) -> None:
    assert clmerge("linear-merge", "a", "b", "--dtype", "bfloat16", "-q").code == 0
    Path("merged/clmerge/divergence.json").write_text(broken, encoding="latin-1")
    assert diff("merged", "a")["model"]["survival"] is None


def test_what_only_one_has_is_listed_and_the_rest_compared(place: Path) -> None:
    ours = {**weights(1), "count": torch.tensor([1, 2]), "mask": torch.tensor([True])}
    theirs = {**weights(2), "count": torch.tensor([1, 3]), "mask": torch.tensor([True])}
    ours["mine.weight"] = torch.ones(2)
    theirs["yours.weight"] = torch.ones(2)
    ours[EMBED] = ours[EMBED][:5]
    checkpoint(place / "m", ours)
    checkpoint(place / "p", theirs)
    document = diff("m", "p")
    (overlap,) = document["overlap"]
    assert overlap == {
        "parent": "p",
        "compared": 3,
        "only_merged": ["mine.weight"],
        "only_parent": ["yours.weight"],
        "shapes": [{"name": EMBED, "merged": [5, 8], "parent": [12, 8]}],
        "equal": 1,
        "differing": ["count"],
    }
    told = clmerge("diff", "m", "p").out
    assert "1 only in m: mine.weight" in told
    assert f"1 of another shape: {EMBED} [5, 8] against [12, 8]" in told


def test_nothing_in_common_is_refused(place: Path) -> None:
    checkpoint(place / "other", {"x": torch.ones(3)})
    says = ("the checkpoints have no tensor in common", "a has model.", "other has x")
    refused("diff", "a", "other", unchanged=place, says=says)
    checkpoint(place / "small", {NORM: torch.ones(3)})
    says = ("no tensor of one shape in common", "[8] in a", "[3] in small")
    refused("diff", "a", "small", unchanged=place, says=says)
    refused("diff", "a", "nowhere", unchanged=place, says=("no such file or directory",))


def test_a_checkpoint_may_lie_in_any_form(place: Path) -> None:
    expected = diff("a", "b")["tensors"]
    for name, seed in (("a", 1), ("b", 2)):
        torch.save(weights(seed), place / f"{name}.bin")
        save_file(weights(seed), place / f"{name}.safetensors")
    files = {name: f"model-{k}.safetensors" for k, name in enumerate(SHAPES)}
    sharded(place / "shards", weights(1), files)
    for path in ("a.bin", "a.safetensors", "shards", f"file://{place}/a"):
        found = diff(path, "b")["tensors"]
        assert sorted(map(str, found)) == sorted(map(str, expected)), path
    bare = diff("a", "b.bin")["model"]  # no sidecar beside it
    assert bare == {**diff("a", "b")["model"], "predicted_kl": None}


def test_a_tied_name_finds_what_it_is_tied_to(place: Path) -> None:
    shared = torch.randn(6, 4)
    torch.save({"embed.weight": shared, "lm_head.weight": shared}, place / "tied.bin")
    save_file({"lm_head.weight": shared + 1}, place / "head.safetensors")
    document = diff("head.safetensors", "tied.bin")
    (row,) = document["tensors"]
    assert row["name"] == "lm_head.weight"
    assert row["max_abs"] == pytest.approx(1, abs=1e-6)


def test_nan_is_refused_by_name_or_leaves_its_tensor_undefined(place: Path) -> None:
    spoilt = weights(1)
    spoilt[LAYER1][3, 3] = float("nan")
    checkpoint(place / "nan", spoilt)
    for line in (("nan", "b"), ("b", "nan")):
        says = ("an input holds NaN or Inf", f"nan: {LAYER1}", "--allow-nonfinite")
        refused("diff", *line, unchanged=place, says=says)
    found = rows(diff("nan", "b", "--allow-nonfinite"))
    assert found[LAYER1, "b"]["rel_l2"] is None
    assert found[LAYER0, "b"]["rel_l2"] is not None


def test_a_fisher_of_other_weights_predicts_nothing_and_is_told(place: Path) -> None:
    assert diff("a", "b")["model"]["predicted_kl"] is not None
    save(place / "b", {**weights(2), NORM: torch.zeros(8)})
    document = diff("a", "b")
    assert document["model"]["predicted_kl"] is None
    assert "Fisher sidecar of b was taken at other weights" in document["notes"][0]
    assert "note: the Fisher sidecar of b" in clmerge("diff", "a", "b").out


def test_a_sidecar_may_lie_elsewhere_and_must_fit(place: Path) -> None:
    checkpoint(place / "m", 3)
    at = sidecar(place / "b", 9, at=place / "other.safetensors", calibration=3.0, tokens=50)
    document = diff("m", "b", "--fisher", at)
    f = {name: t.double().reshape(-1).numpy() for name, t in load_file(at).items()}
    every = list(SHAPES)
    m, p = wide(place / "m"), wide(place / "b")
    expected = distances(joined(m, every), joined(p, every), joined(f, every))["predicted_kl"]
    (model,) = document["model_by_parent"]
    assert model["predicted_kl"] == pytest.approx(expected, rel=1e-9)
    assert model["predicted_loss"] == pytest.approx(3.0 * expected / 5, rel=1e-9)
    checkpoint(place / "x", {"x": torch.ones(2)})
    wrong = sidecar(place / "x", 1)
    says = ("a Fisher sidecar belongs to another model",)
    refused("diff", "m", "b", "--fisher", wrong, unchanged=place, says=says)
    says = ("the file is no Fisher sidecar",)
    refused("diff", "m", "b", "--fisher", "a/model.safetensors", unchanged=place, says=says)


def test_an_empirical_fisher_is_no_divergence(place: Path) -> None:
    sidecar(place / "b", 2, estimator="empirical")
    assert diff("a", "b")["model"]["predicted_kl"] is None


def test_neither_threads_nor_memory_change_a_number(tmp_path: Path) -> None:
    large = {f"model.layers.{k}.w.weight": torch.randn(300_001) for k in range(3)}
    m = checkpoint(tmp_path / "m", large)
    p = checkpoint(tmp_path / "p", {name: t + 0.1 for name, t in large.items()})
    first = diff(m, p, "--threads", "1")
    for line in (["--threads", "3"], ["--threads", "4", "--memory", "16MiB"]):
        assert diff(m, p, *line)["tensors"] == first["tensors"]
    says = ("the memory limit is too small for the buffers of one worker", "--memory 1000000")
    refused("diff", m, p, "--memory", "1MB", unchanged=tmp_path, says=says, code=2)


def test_a_pattern_that_matches_nothing_is_a_usage_error(place: Path) -> None:
    says = ("a pattern matches no tensor", "'*nrom*'")
    refused("diff", "a", "b", "--include", "*nrom*", unchanged=place, says=says, code=2)
    says = ("--text-field needs --data",)
    refused("diff", "a", "b", "--text-field", "x", unchanged=place, says=says, code=2)


def conflict(*updates: np.ndarray) -> float:
    apart = sum(np.abs(one) for one in updates)
    return float((apart - np.abs(sum(updates))).sum() / apart.sum())


def test_sign_conflict_is_that_of_the_updates_from_a_base(place: Path) -> None:
    checkpoint(place / "base", 5)
    checkpoint(place / "c", 6)
    a, b, base = (wide(place / name) for name in ("a", "b", "base"))
    document = diff("a", "b", "--base", "base")
    for name in SHAPES:
        expected = conflict(a[name] - base[name], b[name] - base[name])
        close(rows(document)[name, "b"], {"sign_conflict": expected})
    of_parents = check("c", "a", "b", "--base", "base")  # the merge itself pulls nothing
    for parent in ("a", "b"):
        close(
            rows(of_parents)[NORM, parent],
            {"sign_conflict": conflict(a[NORM] - base[NORM], b[NORM] - base[NORM])},
        )
    assert diff("a", "b")["model"]["sign_conflict"] is None
    part = {name: t for name, t in weights(5).items() if name != NORM}
    checkpoint(place / "part", part)
    found = rows(diff("a", "b", "--base", "part"))
    assert found[NORM, "b"]["sign_conflict"] is None
    assert found[EMBED, "b"]["sign_conflict"] is not None
    refused("diff", "a", "b", "--base", "none", unchanged=place, says=("none",))


def test_a_tied_head_that_one_stores_twice_is_not_missing(place: Path) -> None:
    config = {"model_type": "toy", "tie_word_embeddings": True}
    tensors = weights(1)
    checkpoint(place / "once", tensors, config)
    checkpoint(place / "twice", {**tensors, "lm_head.weight": tensors[EMBED].clone()}, config)
    assert diff("once", "twice")["overlap"][0]["only_parent"] == []
    check("once", "twice")
    assert diff("twice", "once")["overlap"][0]["compared"] == 5
