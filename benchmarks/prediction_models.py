"""What benchmarks/prediction.py needs of a model: outputs, and how they move with the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from examples.models import encode

Weights = Mapping[str, Tensor]


class Rows:
    """Rows as batches of like length; rows x tokens of a batch are bounded."""

    def __init__(self, tokenizer: Any, rows: Sequence[dict[str, Any]], longest: int) -> None:
        ordered = sorted(rows, key=lambda row: len(row["text"]))
        parts = [ordered[i : i + 32] for i in range(0, len(ordered), 32)]
        self.batches = [encode(tokenizer, part, longest) for part in parts]
        self.count = len(ordered)


class Probe:
    """One architecture whose weights are given anew with each question."""

    def __init__(self, folder: Path) -> None:
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            AutoTokenizer,
        )
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        classifier = "ForSequenceClassification" in (folder / "config.json").read_text()
        kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
        # Forward-mode derivatives exist for attention that is written out.
        self.model = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.model.requires_grad_(False)

    def outputs(self, weights: Weights, batch: Mapping[str, Tensor]) -> Tensor:
        """(positions, classes): logits where a label counts; a classifier has one position."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits = functional_call(
            self.model, dict(weights), kwargs=inputs | {"use_cache": False}, tie_weights=True
        ).logits
        if logits.ndim == 2:
            return logits
        return logits[:, :-1][batch["labels"][:, 1:] != -100]

    @torch.no_grad()
    def logits(self, weights: Weights, rows: Rows) -> list[Tensor]:
        """Outputs of every batch."""
        return [self.outputs(weights, batch) for batch in rows.batches]

    @torch.no_grad()
    def quadratic(self, weights: Weights, step: Weights, rows: Rows) -> float:
        """1/2 step^T F step in nats per token, F the whole Fisher over `rows`.

        z = J step by forward-mode differentiation; then 1/2 Var_p(z) at each position, exact in the
        labels.
        """
        total, count = 0.0, 0
        moved = {name: weights[name] for name in step}
        still = {name: weights[name] for name in weights.keys() - step.keys()}
        for batch in rows.batches:

            def at(point: Weights, batch: Mapping[str, Tensor] = batch) -> Tensor:
                return self.outputs(still | dict(point), batch)

            logits, tangent = jvp(at, (moved,), (dict(step),))
            p, z = logits.double().softmax(-1), tangent.double()
            total += float(((p * z.square()).sum(-1) - (p * z).sum(-1).square()).sum()) / 2
            count += len(p)
        return total / count


def divergence(parent: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """KL(parent || other), nats per token."""
    total, count = 0.0, 0
    for one, two in zip(parent, other, strict=True):
        for start in range(0, len(one), 512):  # softmaxes of a vocabulary in float64 are large
            a, b = (x[start : start + 512].double().log_softmax(-1) for x in (one, two))
            total += float((a.exp() * (a - b)).sum())
        count += len(one)
    return total / count


def loss(logits: Sequence[Tensor], rows: Rows) -> float:
    """Nats per token."""
    total, count = 0.0, 0
    for one, batch in zip(logits, rows.batches, strict=True):
        labels = batch["labels"]
        if labels.ndim == 2:
            labels = labels[:, 1:][labels[:, 1:] != -100]
        total += float(torch.nn.functional.cross_entropy(one, labels, reduction="sum"))
        count += len(one)
    return total / count


def layer(name: str) -> str:
    """What is calibrated together: a layer, what comes before the layers, what comes after."""
    if found := re.search(r"layers?\.(\d+)\.", name):
        return f"layer {found[1]}"
    return "embeddings" if "embed" in name else "head"


def kind(name: str) -> str:
    """Attention, feed-forward or neither."""
    if re.search(r"attn|attention\.(self|output)", name):
        return "attention"
    return "feed-forward" if re.search(r"layers?\.\d+\.", name) else "other"
