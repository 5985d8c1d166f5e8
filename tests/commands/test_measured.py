"""`--data` of `diff` and `check`: losses against transformers, row by row in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.commands.comparisons import check, diff
from tests.commands.models import write_rows
from tests.commands.running import clmerge, refused
from tests.commands.verifications import save
from tests.tiny_models import TEXTS

HEAD = "lm_head.weight"
ROWS = ("--data", "rows.jsonl")


def language_losses(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of each of TEXTS."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    net = LlamaForCausalLM.from_pretrained(model).double().eval()
    nats, tokens = [], []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            log_p = net(input_ids=ids).logits.log_softmax(-1)
            nats.append(-float(log_p[0, :-1].gather(1, ids[0, 1:, None]).sum()))
            tokens.append(ids.shape[1] - 1)
    return np.array(nats), np.array(tokens)


def ratio(values: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    mean = values.sum() / tokens.sum()
    n = len(values)
    spread = np.square(values - mean * tokens).sum() * n / (n - 1)
    return mean, np.sqrt(spread) / tokens.sum()


def same(row: dict[str, Any], keys: tuple[str, str], expected: tuple[float, float]) -> None:
    for key, value in zip(keys, expected, strict=True):
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_the_loss_of_both_is_that_of_transformers(models: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "-q").code == 0
    measured = diff("merged", "a", *ROWS)["measured"]
    (parent,) = measured["parents"]
    ours, tokens = language_losses(models / "merged")
    theirs, _ = language_losses(models / "a")
    assert (measured["rows"], measured["tokens"]) == (len(TEXTS), tokens.sum())
    same(measured["merged"], ("loss", "standard_error"), ratio(ours, tokens))
    same(parent, ("loss", "standard_error"), ratio(theirs, tokens))
    same(parent, ("rise", "rise_standard_error"), ratio(ours - theirs, tokens))
    assert parent["accuracy"] is None


def test_a_classifier_is_measured_by_its_accuracy_too(models: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    measured = diff("c", "c", "--data", "labelled.csv")["measured"]
    tokenizer = AutoTokenizer.from_pretrained(models / "c")
    net = BertForSequenceClassification.from_pretrained(models / "c").double().eval()
    nats, right = [], []
    with torch.no_grad():
        for number, text in enumerate(TEXTS):
            logits = net(**tokenizer(text, return_tensors="pt")).logits[0]
            nats.append(-float(logits.log_softmax(-1)[number % 3]))
            right.append(float(logits.argmax() == number % 3))
    ones = np.ones(len(TEXTS))
    same(measured["merged"], ("loss", "standard_error"), ratio(np.array(nats), ones))
    keys = ("accuracy", "accuracy_standard_error")
    same(measured["merged"], keys, ratio(np.array(right), ones))
    (parent,) = measured["parents"]
    assert (parent["rise"], parent["rise_standard_error"]) == (0, 0)


def test_a_measured_rise_decides_the_verdict_and_stands_beside_the_prediction(models: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "-q").code == 0
    rises = diff("merged", "b", *ROWS)["measured"]["parents"][0]["rise"]
    limit = "[model]\nloss_rise = {}\n"
    (models / "below.toml").write_text(limit.format(rises - 0.01))
    (models / "above.toml").write_text(limit.format(rises + 0.01))
    failed = check("merged", "b", *ROWS, "--policy", "below.toml", code=10)
    assert failed["verdict"]["reasons"][0].startswith("measured loss ")
    check("merged", "b", *ROWS, "--policy", "above.toml")
    check("merged", "b", "--policy", "below.toml")  # nothing measured breaks nothing
    told = clmerge("diff", "merged", "b", *ROWS).out
    assert f"measured on {len(TEXTS)} rows" in told
    assert "predicted" in told


def test_the_rows_are_at_most_those_asked_for(models: Path) -> None:
    measured = diff("a", "b", *ROWS, "--samples", "3", "--max-length", "4")["measured"]
    assert measured["rows"] == 3
    assert measured["tokens"] == 9


def test_what_does_not_compare_is_refused(models: Path) -> None:
    tokenizer = models / "b/tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    tokenizer.write_text(json.dumps(content))
    says = ("the models read the same rows as different tokens", "b: another tokenizer")
    refused("diff", "a", "b", *ROWS, unchanged=models, says=says)
    says = ("measuring a classifier's loss needs labels",)
    refused("diff", "c", "c", *ROWS, unchanged=models, says=says)
    refused("diff", "a", "a", "--data", "none.jsonl", unchanged=models, says=("none.jsonl",))
    write_rows(models / "bad.jsonl", [{"text": 3}])
    refused("diff", "a", "a", "--data", "bad.jsonl", unchanged=models, says=("bad.jsonl",))


def test_a_model_whose_outputs_are_not_finite_is_refused(models: Path) -> None:
    weights = load_file(models / "b/model.safetensors")
    save(models / "b", {**weights, HEAD: torch.full_like(weights[HEAD], 3e38)})
    says = ("the model's outputs are not finite", "b on --data")
    refused("diff", "b", "a", *ROWS, unchanged=models, says=says)
