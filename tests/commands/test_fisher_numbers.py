"""The numbers of `clmerge fisher` against the definition, row by row in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands.models import (
    SIDECAR,
    distance,
    run,
    said_by,
    slow_fisher,
    stored,
    write_rows,
)
from tests.tiny_models import TEXTS

ROWS = ("--data", "rows.jsonl")
FULL = ("--store-dtype", "float32")
LAYER = "model.layers.0.mlp.up_proj.weight"


def test_empirical_is_the_mean_of_squared_row_gradients(models: Path) -> None:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    for model, kind in (("a", LlamaForCausalLM), ("gpt", GPT2LMHeadModel)):
        run("fisher", model, *ROWS, "--estimator", "empirical", *FULL)
        found = stored(models / model / SIDECAR)
        assert distance(found, slow_fisher(models / model, kind, labels=None)) < 1e-5


def test_exact_sums_over_the_classes_and_is_the_default_of_a_classifier(models: Path) -> None:
    from transformers import BertForSequenceClassification

    document = run("fisher", "c", "--data", "labelled.csv", *FULL)
    assert document["estimator"] == "exact"
    slow = slow_fisher(models / "c", BertForSequenceClassification, labels=[0, 1, 2])
    assert distance(stored(models / "c" / SIDECAR), slow) < 1e-5


@pytest.mark.parametrize("estimator", ["mc", "empirical"])
def test_neither_batch_size_nor_the_order_of_rows_changes_the_result(
    models: Path, estimator: str
) -> None:
    write_rows(models / "other.jsonl", ({"text": text} for text in reversed(TEXTS)))
    line = ("fisher", "a", "--estimator", estimator, *FULL)
    run(*line, "--data", "rows.jsonl", "--batch-size", "1", "-o", "one.safetensors")
    run(*line, "--data", "rows.jsonl", "--batch-size", "5", "-o", "five.safetensors")
    run(*line, "--data", "other.jsonl", "--batch-size", "5", "-o", "other.safetensors")
    one, five = stored(models / "one.safetensors"), stored(models / "five.safetensors")
    assert distance(five, {name: tensor.double() for name, tensor in one.items()}) < 1e-5
    five_bytes = (models / "five.safetensors").read_bytes()
    assert (models / "other.safetensors").read_bytes() == five_bytes


def test_the_seed_draws_other_labels_and_more_draws_average_them(models: Path) -> None:
    for seed in ("0", "1"):
        run("fisher", "a", *ROWS, *FULL, "--seed", seed, "-o", f"{seed}.safetensors")
    zero, one = stored(models / "0.safetensors"), stored(models / "1.safetensors")
    assert not torch.equal(zero[LAYER], one[LAYER])
    run("fisher", "a", *ROWS, *FULL, "--draws", "64", "-o", "many.safetensors")
    many, few = said_by(models / "many.safetensors"), said_by(models / "0.safetensors")
    assert many["draws"] == 64
    assert many["tensors"][LAYER]["standard_error"] < few["tensors"][LAYER]["standard_error"]


def test_an_adapter_changes_the_values_and_not_the_names(models: Path) -> None:
    from transformers import LlamaForCausalLM

    from tests.training.test_adapter import make_adapter

    make_adapter(
        LlamaForCausalLM.from_pretrained("a"), models / "adapter", target_modules=["up_proj"]
    )
    line = ("fisher", "a", *ROWS, *FULL)
    run(*line, "-o", "without.safetensors")
    run(*line, "-o", "with.safetensors", "--adapter", "adapter")
    without, applied = stored(models / "without.safetensors"), stored(models / "with.safetensors")
    assert without.keys() == applied.keys()
    assert not torch.equal(without[LAYER], applied[LAYER])
    assert run(*line, "-o", "with.safetensors", "--adapter", "adapter")["state"] == "up to date"
