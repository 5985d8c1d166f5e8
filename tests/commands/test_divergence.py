"""What divergence.json says: copied tensors, what no Fisher covers, inputs that pull apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge
from tests.commands.toys import EMBED, LAYER0, LAYER1, NORM, A, B, C, fisher_of, run

pytestmark = pytest.mark.usefixtures("three")


def report(path: str = "merged") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path, "clmerge/divergence.json").read_text())
    return found


def by_parent(found: dict[str, Any]) -> dict[str, Any]:
    return {row["parent"]: row for row in found["model_by_parent"]}


def row(found: dict[str, Any], name: str, parent: str) -> dict[str, Any]:
    rows = [r for r in found["tensors"] if (r["name"], r["parent"]) == (name, parent)]
    return dict(rows[0])


def numbers(names: tuple[str, ...], **models: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        key: np.concatenate([model[name].double().numpy().ravel() for name in names])
        for key, model in models.items()
    }


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_copied_tensors_count_against_every_input(place: Path, command: str) -> None:
    run(command, "a", "b", "--copy", "model.layers.1.*", "--copy", NORM)
    found = report()
    assert len(found["tensors"]) == 8
    for metric in ("rel_l2", "max_abs", "changed", "predicted_kl"):
        assert row(found, LAYER1, "a")[metric] == 0
    copied = row(found, LAYER1, "b")
    a, b, f = (m[LAYER1].double().numpy() for m in (A, B, fisher_of("b")))
    assert copied["rel_l2"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-9)
    assert copied["predicted_kl"] == pytest.approx((f * (a - b) ** 2).sum() / 2, rel=1e-9)
    assert (copied["changed"], copied["survival"]) == (1, 1)
    m = load_file("merged/model.safetensors")
    whole = numbers((EMBED, LAYER0, LAYER1, NORM), m=m, b=B, f=fisher_of("b"))
    model = by_parent(found)["b"]
    moved = whole["m"] - whole["b"]
    expected = np.linalg.norm(moved) / np.linalg.norm(whole["b"])
    assert model["rel_l2"] == pytest.approx(expected, rel=1e-9)
    assert model["predicted_kl"] == pytest.approx((whole["f"] * moved**2).sum() / 2, rel=1e-9)


def test_a_copy_into_fewer_bits_says_what_rounding_took(place: Path) -> None:
    run("linear-merge", "a", "b", "--copy", NORM, "--dtype", "bfloat16")
    found = row(report(), NORM, "a")
    error = (A[NORM].bfloat16().double() - A[NORM].double()).norm() / A[NORM].double().norm()
    assert found["rel_l2"] == pytest.approx(float(error), rel=1e-9)
    assert found["survival"] is None  # nothing was to change


def test_a_tensor_without_fisher_that_stays_as_it_is_leaves_the_prediction(place: Path) -> None:
    for model in "ab":
        sidecar(place / model, leave_out={NORM: "frozen"})
    run("fisher-merge", "a", "b", "--copy", NORM)
    found = by_parent(report())
    size = sum(tensor.numel() for tensor in A.values())
    for parent in found.values():
        assert parent["fisher_share"] == pytest.approx(1 - A[NORM].numel() / size)
        assert parent["without_fisher"] == [NORM]
    names = (EMBED, LAYER0, LAYER1)
    m = load_file("merged/model.safetensors")
    whole = numbers(names, m=m, a=A, f=fisher_of("a"))
    expected = (whole["f"] * (whole["m"] - whole["a"]) ** 2).sum() / 2
    assert found["a"]["predicted_kl"] == pytest.approx(expected, rel=1e-9)
    assert found["b"]["predicted_kl"] is None  # its norm became a's, at a cost nobody measured


def test_a_tensor_without_fisher_that_changed_leaves_nothing_to_predict(place: Path) -> None:
    for model in "ab":
        sidecar(place / model, leave_out={NORM: "frozen"})
    run("fisher-merge", "a", "b", "--on-missing-fisher", "linear")
    found = report()
    assert {row["predicted_kl"] for row in by_parent(found).values()} == {None}
    assert row(found, LAYER0, "a")["predicted_kl"] is not None


def test_all_covered_says_so_and_no_sidecar_says_nothing(place: Path) -> None:
    run("fisher-merge", "a", "b")
    for parent in by_parent(report()).values():
        assert (parent["fisher_share"], parent["without_fisher"]) == (1, [])
    for seed, name in ((1, "d"), (2, "e")):
        checkpoint(place / name, weights(seed))
    run("linear-merge", "d", "e", "-o", "plain")
    for parent in by_parent(report("plain")).values():
        assert (parent["fisher_share"], parent["without_fisher"]) == (None, [])
        assert parent["predicted_kl"] is None


def conflict(*names: str) -> float:
    """`sum_i (sum_k |d_ki| - |sum_k d_ki|) / sum_i sum_k |d_ki|` of a and b from c."""
    known = numbers(names, a=A, b=B, c=C)
    d = np.stack([known["a"] - known["c"], known["b"] - known["c"]])
    apart = np.abs(d).sum()
    return float((apart - np.abs(d.sum(axis=0)).sum()) / apart)


LINES = {
    "normalised": ("linear-merge", "a", "b"),
    "task arithmetic": ("linear-merge", "a", "b", "--weights", "1,0.2", "--no-normalize"),
    "by Fisher": ("fisher-merge", "a", "b", "--weights", "1,5"),
    "base decides too": ("fisher-merge", "a", "b", "--fallback", "base"),
}


@pytest.mark.parametrize("name", LINES)
def test_with_a_base_it_says_how_far_the_inputs_pull_apart(place: Path, name: str) -> None:
    run(*LINES[name], "--base", "c")
    found = report()
    for tensor in (EMBED, LAYER0, LAYER1, NORM):
        for parent in "ab":
            value = row(found, tensor, parent)["sign_conflict"]
            assert value == pytest.approx(conflict(tensor), rel=1e-9)
    layers = {r["layer"]: r["sign_conflict"] for r in found["layers"]}
    assert layers["model.layers.1"] == pytest.approx(conflict(LAYER1), rel=1e-9)
    whole = conflict(EMBED, LAYER0, LAYER1, NORM)
    assert found["model"]["sign_conflict"] == pytest.approx(whole, rel=1e-9)
    roles = [
        one["role"]
        for one in json.loads(Path("merged/clmerge/manifest.json").read_text())["inputs"]
    ]
    assert roles.count("base") == 1


def test_without_a_base_nothing_is_known_of_that(place: Path) -> None:
    run("linear-merge", "a", "b")
    found = report()
    assert found["model"]["sign_conflict"] is None
    assert {r["sign_conflict"] for r in found["tensors"]} == {None}


def test_a_base_is_not_read_where_nothing_needs_it(place: Path) -> None:
    line = ("linear-merge", "a", "b", "--base", "c", "--dry-run", "--json")
    read = {more: clmerge(*line, *more).document["bytes_read"] for more in ((), ("--no-report",))}
    nbytes = sum(tensor.nbytes for tensor in C.values())
    assert read[()] - read[("--no-report",)] >= nbytes


def test_a_policy_may_bound_conflict(place: Path) -> None:
    (place / "policy.toml").write_text("[model]\nsign_conflict = 0.01\n")
    line = ("linear-merge", "a", "b", "--base", "c", "--policy", "policy.toml", "--strict")
    result = clmerge(*line)
    assert result.code == 10
    assert "sign_conflict" in result.err


@pytest.mark.parametrize(
    "line",
    [
        ("linear-merge", "--weights", "1,0.5", "--no-normalize"),
        ("fisher-merge", "--fallback", "base"),
        ("fisher-merge", "--on-missing-fisher", "base"),
    ],
    ids=" ".join,
)
def test_residuals_of_the_inputs_do_not_stand_in_for_the_base(
    place: Path, line: tuple[str, ...]
) -> None:
    # Residuals are read behind the base; kernels look for it at the end.
    command, *options = line
    for model, seed in (("d", 1), ("e", 2)):
        one, two = (
            checkpoint(place / f"{model}{n}", weights(10 * seed + n, torch.bfloat16))
            for n in (1, 2)
        )
        run("linear-merge", one.name, two.name, "--carry", "-o", model)
        values = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in A.items()}
        values[NORM] += 1
        left_out = {EMBED: "frozen"} if "--on-missing-fisher" in line else {}
        sidecar(
            place / model,
            values={k: v for k, v in values.items() if k not in left_out},
            leave_out=left_out,
        )
    run(command, "d", "e", *options, "--base", "c", "--carry", "--dtype", "float32")
    exact = {}
    for model in "de":
        stored, carried = (
            load_file(f"{model}/{file}")
            for file in ("model.safetensors", "clmerge/carry.safetensors")
        )
        exact[model] = {name: stored[name].double() + carried[name].double() for name in stored}
    found = load_file("merged/model.safetensors")
    base = C[EMBED].double()
    d, e = exact["d"][EMBED], exact["e"][EMBED]
    expected = base + (d - base) + 0.5 * (e - base) if command == "linear-merge" else base
    torch.testing.assert_close(found[EMBED].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_merge_of_models_that_were_trained_apart_says_so_and_one_of_tunes_does_not(
    place: Path,
) -> None:
    for command in ("linear-merge", "fisher-merge"):
        result = clmerge(command, "a", "b", "-o", command)
        assert result.code == 0, result.err
        assert "note: the inputs are far apart (cosine 0." in result.err
    tuned = {name: tensor + 0.01 * B[name] for name, tensor in A.items()}
    checkpoint(place / "tuned", tuned)
    result = clmerge("linear-merge", "a", "tuned", "-o", "near", "--json")
    assert result.document["notes"] == []
