"""A model that is no single stack of layers is refused, never computed wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.errors import BatchError, EstimatorError, StackError
from tests.fisher.streaming import Streaming, compare, made, whole


@pytest.mark.parametrize(
    ("kind", "says"),
    [("albert", "more than once"), ("t5", "has 2 stacks of layers: encoder.block, decoder.block")],
)
def test_what_is_no_single_stack_is_refused_by_name(
    kind: str, says: str, rows: Any, shaken: Any, tmp_path: Path
) -> None:
    model = made(kind, shaken)
    with pytest.raises(StackError, match=says):
        Streaming(model, [rows("classifier")], tmp_path).run()


class Blocks(nn.Module):
    """Embedding, layers, head; the kinds below do with them what cannot be streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(61, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 61)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


class Changes(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        logits: Tensor = self.head(x)
        return logits


class Skips(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = start = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x + start)
        return logits


class Collects(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, seen = self.embed(input_ids), []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        logits: Tensor = self.head(torch.stack(seen).mean(0))
        return logits


class LeavesOut(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers[0](self.embed(input_ids)))
        return logits


class Shares(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1].weight = self.layers[0].weight


class NoStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Changes, "changes hidden states before layer 1"),
        (Skips, "embed.weight is used both before and after"),
        (Collects, "uses more than the last one's result"),
        (LeavesOut, "does not call all of its layers"),
        (Shares, "layers share weights: layers.0.weight and layers.1.weight"),
        (NoStack, "has no stack of layers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_goes_another_way_is_refused_not_computed_wrongly(
    kind: Callable[[], nn.Module], says: str, rows: Any, tmp_path: Path
) -> None:
    with pytest.raises(StackError, match=says):
        Streaming(kind(), [rows()], tmp_path).run()


def test_plain_layers_need_no_library(rows: Any, split: Any, distance: Any, tmp_path: Path) -> None:
    model, batches = Blocks(), split(rows(), 2)
    found = Streaming(model, batches, tmp_path)
    compare(found, found.run(), whole(model, batches), distance)


def test_what_the_accumulator_refuses_is_refused_here_too(
    build: Any, rows: Any, tmp_path: Path
) -> None:
    model = build("llama")
    for options in ({"estimator": "best"}, {"draws": 0}, {"include": lambda name: False}):
        with pytest.raises(EstimatorError):
            Streaming(model, [rows()], tmp_path, **options)
    with pytest.raises(EstimatorError, match="exact sums over the classes"):
        Streaming(model, [rows()], tmp_path, estimator="exact").run()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(BatchError, match="not finite"):
        Streaming(model, [rows()], tmp_path).run()
