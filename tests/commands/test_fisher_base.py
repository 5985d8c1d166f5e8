"""`clmerge fisher --base`: a measured divergence, and predicted losses in nats that come of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fisher.calibration
from tests.commands.models import SIDECAR, run, said_by
from tests.commands.running import clmerge, refused
from tests.commands.trees import snapshot
from tests.tiny_models import TEXTS

ROWS = ("--data", "rows.jsonl")
PARTIAL = Path("a/clmerge/.fisher.safetensors.partial")


@pytest.fixture
def tuned(models: Path) -> Callable[..., Path]:
    """Make BASE of a model: the same but for a small random step from it."""

    def make(name: str, size: float = 0.02) -> Path:
        base = models / f"base-of-{name}"
        shutil.copytree(models / name, base)
        torch.manual_seed(0)
        weights = load_file(base / "model.safetensors")
        for tensor in weights.values():
            tensor += torch.randn_like(tensor) * size
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        return base

    return make


def divergence(kind: str, model: Path, base: Path) -> tuple[float, int]:
    """(nats in all, positions) of KL(model || base) over TEXTS, row by row in float64."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    # Grouped products know no float64.
    plain = {"experts_implementation": "eager"} if kind.startswith("Mixtral") else {}
    p, q = (
        getattr(transformers, kind).from_pretrained(m, **plain).double().eval()
        for m in (model, base)
    )
    total, positions = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            one, two = (m(input_ids=ids).logits.log_softmax(-1) for m in (p, q))
        if one.dim() == 3:
            one, two = one[0, :-1], two[0, :-1]
        total += float((one.exp() * (one - two)).sum())
        positions += len(one)
    return total, positions


@pytest.mark.parametrize(
    ("model", "kind", "data"),
    [
        ("a", "LlamaForCausalLM", "rows.jsonl"),
        ("tied", "LlamaForCausalLM", "rows.jsonl"),
        ("moe", "MixtralForCausalLM", "rows.jsonl"),
        ("c", "BertForSequenceClassification", "labelled.csv"),
    ],
)
def test_the_sidecar_holds_the_divergence_and_what_was_predicted(
    models: Path, tuned: Any, model: str, kind: str, data: str
) -> None:
    base = tuned(model)
    document = run("fisher", model, "--data", data, "--base", base, "--store-dtype", "float32")
    said = said_by(models / model / SIDECAR)
    total, positions = divergence(kind, models / model, base)
    found = said["calibrated"]
    assert (found["examples"], found["tokens"]) == (len(TEXTS), positions)
    assert found["measured"] == pytest.approx(total / len(TEXTS), rel=1e-3)
    assert found["measured_per_token"] == pytest.approx(total / positions, rel=1e-3)
    diagonal = load_file(models / model / SIDECAR)
    mine, theirs = (load_file(m / "model.safetensors") for m in (models / model, base))
    expected = 0.5 * sum(
        float((diagonal[n].double() * (mine[n].double() - theirs[n].double()).square()).sum())
        for n in diagonal
    )
    assert found["predicted"] == pytest.approx(expected, rel=1e-5)
    assert found["predicted_per_token"] == pytest.approx(expected * len(TEXTS) / positions)
    assert said["calibration"] == pytest.approx(found["measured"] / found["predicted"])
    assert document["calibration"] == said["calibration"]


def test_a_merge_then_predicts_a_loss_in_nats_and_is_judged_by_it(models: Path, tuned: Any) -> None:
    base = tuned("a", 0.1)
    run("fisher", "a", *ROWS, "--base", base)
    said = said_by(models / "a" / SIDECAR)
    result = clmerge("linear-merge", "a", base, "--weights", "0,1", "-o", "moved")
    document = json.loads((models / "moved/clmerge/divergence.json").read_text())
    # A merge that is the base lies where it was measured: the prediction is the measurement.
    by_parent = {one["parent"]: one["predicted_loss"] for one in document["model_by_parent"]}
    assert by_parent["a"] == pytest.approx(said["calibrated"]["measured_per_token"], rel=1e-2)
    assert by_parent[str(base)] is None
    assert document["model"]["predicted_loss"] == by_parent["a"]
    nats = f"{by_parent['a']:.3g}"
    assert f"predicted loss on a's data: {nats} nats per token (calibrated" in result.err

    assert by_parent["a"] > 0.02
    assert "predicted loss on a's data" in document["verdict"]["reasons"][0]
    strict = clmerge("linear-merge", "a", base, "-o", "z", "--weights", "0,1", "--strict")
    assert strict.code == 10
    assert not (models / "z").exists()
    (models / "loose.toml").write_text(f"[model]\npredicted_loss = {by_parent['a'] * 1.1}\n")
    loose = ("--strict", "--policy", "loose.toml", "-o", "z", "--weights", "0,1")
    assert clmerge("linear-merge", "a", base, *loose).code == 0
    near = clmerge("linear-merge", "a", base, "--weights", "0.99,0.01", "-o", "y", "--strict")
    assert near.code == 0


def test_without_a_base_nothing_is_in_nats(models: Path) -> None:
    run("fisher", "a", *ROWS)
    said = said_by(models / "a" / SIDECAR)
    assert said["calibration"] is None
    assert said["calibrated"] is None
    result = clmerge("linear-merge", "a", "b")
    assert "predicted loss on" not in result.err
    document = json.loads((models / "merged/clmerge/divergence.json").read_text())
    assert document["model"]["predicted_loss"] is None


def test_the_end_says_what_was_measured_and_how_far_it_holds(models: Path, tuned: Any) -> None:
    result = clmerge("fisher", "a", *ROWS, "--base", tuned("a"))
    said = said_by(models / "a" / SIDECAR)
    found = said["calibrated"]
    assert (
        f"divergence from the base: measured {found['measured_per_token']:.4g} nats per token, "
        f"predicted {found['predicted_per_token']:.4g} from the diagonal alone" in result.err
    )
    assert f"calibration {said['calibration']:.3g} (measured over predicted)" in result.err
    assert "may be off by as much as the diagonal alone is" in result.err


def test_a_base_is_part_of_what_was_asked(models: Path, tuned: Any) -> None:
    base = tuned("a")
    assert run("fisher", "a", *ROWS, "--base", base)["state"] == "published"
    assert run("fisher", "a", *ROWS, "--base", base)["state"] == "up to date"
    refused("fisher", "a", *ROWS, unchanged=models, says=("made with other options",))
    options = said_by(models / "a" / SIDECAR)["options"]
    shutil.copytree(base, models / "elsewhere")
    assert run("fisher", "a", *ROWS, "--base", "elsewhere")["state"] == "up to date"
    assert len(options["base"]) == 64


def never(*_: Any) -> None:
    raise AssertionError("something was computed")


@pytest.mark.parametrize("during", ["the sums", "the divergence"])
def test_an_interrupted_calibration_is_continued_to_the_same_bytes(
    models: Path, tuned: Any, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    line = ("fisher", "a", *ROWS, "--base", tuned("a"), "--batch-size", "1")
    module, name = (
        (fisher.accumulator.Accumulator, "add")
        if during == "the sums"
        else (fisher.calibration, "divergences")
    )
    whole = getattr(module, name)
    calls = []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments)

    monkeypatch.setattr(module, name, stopping)
    result = clmerge(*line)
    assert result.code == 130
    assert str(PARTIAL) in result.err
    assert not (models / "a" / SIDECAR).exists()
    with monkeypatch.context() as patch:
        if during == "the divergence":  # the sums were finished, and are kept
            patch.setattr(fisher.accumulator.Accumulator, "add", never)
        assert clmerge(*line).code == 0
    assert len(calls) == (len(TEXTS) if during == "the sums" else 3 + len(TEXTS))
    assert clmerge(*line, "-o", "whole.safetensors").code == 0
    assert (models / "a" / SIDECAR).read_bytes() == (models / "whole.safetensors").read_bytes()


def test_a_base_of_another_kind_is_refused_before_anything_is_computed(
    models: Path, tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tuned("a")

    monkeypatch.setattr(fisher.accumulator.Accumulator, "add", never)
    line = ("fisher", "a", *ROWS, "--base")
    kind = "another kind of model"
    refused(*line, "c", unchanged=models, says=(kind, "model_type: a has llama", "c has bert"))
    refused(*line, "tied", unchanged=models, says=(kind, "lm_head.weight", "tied has nothing"))
    refused(*line, "a", unchanged=models, says=("the base is the model itself",), code=2)
    refused(*line, "nowhere", unchanged=models, says=("nowhere",))

    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(*line, base, unchanged=models, says=(kind, "a has cat", "has dog"))

    other = tuned("c")
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "x", "1": "y", "2": "z"}
    config["label2id"] = {"x": 0, "y": 1, "z": 2}
    (other / "config.json").write_text(json.dumps(config))
    says = (kind, "classes: c has", "'x', 'y', 'z'")
    refused("fisher", "c", "--data", "labelled.csv", "--base", other, unchanged=models, says=says)


def test_a_base_without_a_tokenizer_is_taken_to_have_the_models(models: Path, tuned: Any) -> None:
    base = tuned("a")
    for file in base.glob("*token*"):
        file.unlink()
    assert run("fisher", "a", *ROWS, "--base", base)["calibration"] > 0


def test_models_that_differ_only_where_nothing_is_stored_are_not_calibrated(
    models: Path, tuned: Any
) -> None:
    base = tuned("a", 0.0)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][0] += 1  # the padding token, in no row
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    result = clmerge("fisher", "a", *ROWS, "--base", base)
    assert "not calibrated: the Fisher is 0 wherever the two models differ" in result.err
    assert said_by(models / "a" / SIDECAR)["calibration"] is None


def test_the_plan_counts_the_base(models: Path) -> None:
    before = snapshot(models)
    alone = run("fisher", "a", *ROWS, "--dry-run")["memory_bytes"]
    both = run("fisher", "a", *ROWS, "--base", "b", "--dry-run")["memory_bytes"]
    elements = sum(t.numel() for t in load_file("a/model.safetensors").values())
    assert both - alone == 4 * elements
    assert snapshot(models) == before
