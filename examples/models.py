"""What the examples need of transformers: a model from a folder, rows as a batch of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.dtype]:
    """Model in float32, its tokenizer, and the dtype it is stored in.

    float32 whatever is stored: an update that bfloat16 would swallow still counts while training,
    and losses differ between models because of their weights, not of their arithmetic.
    """
    config = json.loads((folder / "config.json").read_text())
    classifier = config["architectures"][0].endswith("ForSequenceClassification")
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32)
    stored = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return model, AutoTokenizer.from_pretrained(folder), stored


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int
) -> dict[str, torch.Tensor]:
    """Rows padded to one length, with `labels`: the class, or each token where there is no class.

    Padding gets the label -100, which counts nowhere.
    """
    batch = dict(
        tokenizer(
            [row["text"] for row in rows],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
    )
    if "label" in rows[0]:
        batch["labels"] = torch.tensor([row["label"] for row in rows])
    else:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch
