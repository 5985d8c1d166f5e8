"""Models taken layer by layer, and what they hand over, for tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator, Estimate
from fisher.batch import Batch
from fisher.layered.boundaries import InFiles, InMemory
from fisher.streamed import Streamed, Ways

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3, alternating masks": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **SIZES,
            "head_dim": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3 moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **SIZES,
            "head_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "experts_implementation": "eager",
        },
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    ),
    "one layer": ("LlamaConfig", "LlamaForCausalLM", {**SIZES, "num_hidden_layers": 1}),
    "albert": (
        "AlbertConfig",
        "AlbertForSequenceClassification",
        {
            "vocab_size": 61,
            "hidden_size": 16,
            "embedding_size": 8,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 61,
            "d_model": 16,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 4,
        },
    ),
}


class Holding:
    """Gives weights, and keeps count of how many elements are held at once."""

    def __init__(self, model: nn.Module) -> None:
        self.values = dict(model.named_parameters())
        self.loads: list[tuple[str, ...]] = []

    def __call__(self, names: Sequence[str]) -> dict[str, Tensor]:
        self.loads.append(tuple(names))
        return {name: self.values[name].detach().clone() for name in names}


class Streaming:
    """A model taken layer by layer, with what it handed over."""

    def __init__(self, model: nn.Module, batches: list[Batch], folder: Path, **options: Any):
        self.weights = Holding(model)
        self.diagonal: dict[str, Tensor] = {}
        self.parts: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.advanced: list[int] = []
        self.activations = options.pop("activations", None) or InMemory()
        self.ways = Ways(
            self.weights,
            self.finish,
            self.activations,
            InFiles(folder),
            self.records.append,
            options.pop("recorded", ()),
            self.advanced.append,
        )
        self.streamed = Streamed(
            emptied(model), lambda: iter(batches), self.ways, device=torch.device("cpu"), **options
        )

    def finish(self, part: str, diagonal: Mapping[str, Tensor]) -> None:
        assert not self.diagonal.keys() & diagonal.keys()
        self.parts.append(part)
        self.diagonal.update({name: values.clone() for name, values in diagonal.items()})

    def run(self) -> Estimate:
        return self.streamed.run()


def emptied(model: nn.Module) -> nn.Module:
    """A copy with its parameters on the meta device, ties kept."""
    twin = copy.deepcopy(model)
    made: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(parameter.detach().to("meta"))
                module._parameters[name] = made.setdefault(id(parameter), empty)
    return twin


def made(kind: str, shaken: Any) -> nn.Module:
    import transformers

    config, architecture, sizes = MORE[kind]
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**sizes))
    shaken(model)
    assert isinstance(model, nn.Module)
    return model


def whole(model: nn.Module, batches: list[Batch], **options: Any) -> Estimate:
    accumulator = Accumulator(model, **options)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.result()


def compare(found: Streaming, result: Estimate, expected: Estimate, distance: Any) -> None:
    assert distance(found.diagonal, expected.diagonal) < 1e-5
    assert sum(found.advanced) == found.streamed.steps
    for key in ("examples", "tokens", "missing", "tied", "estimator", "draws", "seed"):
        assert getattr(result, key) == getattr(expected, key)
    assert result.mean_nll == pytest.approx(expected.mean_nll, rel=1e-6)
    assert result.trace_standard_error == pytest.approx(expected.trace_standard_error, rel=1e-5)
    assert result.standard_error.keys() == expected.standard_error.keys()
    largest = max(float(error or 0) for error in expected.standard_error.values())
    for name, error in expected.standard_error.items():
        assert result.standard_error[name] == pytest.approx(error, rel=1e-4, abs=1e-9 * largest)
