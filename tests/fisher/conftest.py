"""Tiny models with random weights, ragged rows, and what equality of two diagonals means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.batch import IGNORE, Batch

VOCABULARY = 61
LENGTHS = (5, 11, 2, 8, 13)

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
_DISTIL = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
_EAGER = {"experts_implementation": "eager"}  # grouped products know no float64

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "tied llama": ("LlamaConfig", "LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "llama classifier": (
        "LlamaConfig",
        "LlamaForSequenceClassification",
        {**_LLAMA, "num_labels": 3},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA, "head_dim": 4}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_LLAMA, "head_dim": 4}),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_LLAMA, **_EAGER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bert": ("BertConfig", "BertForSequenceClassification", _BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {**_DISTIL, "max_position_embeddings": 64, "num_labels": 3},
    ),
}


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """A model of one of `KINDS`, in training mode as a user may well hand it over."""

    def model(kind: str, **changes: Any) -> nn.Module:
        import transformers

        config, architecture, sizes = KINDS[kind]
        torch.manual_seed(1)
        made: nn.Module = getattr(transformers, architecture)(
            getattr(transformers, config)(**{**sizes, **changes})
        )
        return shaken(made).train()

    return model


def shaken(model: nn.Module) -> nn.Module:
    """The model with weights large enough that its softmax is not flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


@pytest.fixture(name="shaken")
def _shaken() -> Callable[[nn.Module], nn.Module]:
    return shaken


@pytest.fixture
def rows() -> Callable[..., Batch]:
    """A padded batch: of a language model, or of a classifier with three classes."""

    def batch(
        kind: str = "llama",
        lengths: Sequence[int] = LENGTHS,
        *,
        width: int | None = None,
        prompt: int = 0,
    ) -> Batch:
        width = width or max(lengths)
        ids = torch.zeros(len(lengths), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for index, length in enumerate(lengths):
            random = torch.Generator().manual_seed(100 * index + length)
            ids[index, :length] = torch.randint(3, VOCABULARY, (length,), generator=random)
            mask[index, :length] = 1
            labels[index, prompt : length - 1] = ids[index, prompt + 1 : length]
        if "bert" in kind or "classifier" in kind:
            labels = torch.arange(len(lengths)) % 3
        names = tuple(f"row {index} of {length}" for index, length in enumerate(lengths))
        return Batch({"input_ids": ids, "attention_mask": mask}, labels, names)

    return batch


@pytest.fixture
def split() -> Callable[[Batch, int], list[Batch]]:
    """A batch cut into batches of at most `size` rows."""

    def cut(batch: Batch, size: int) -> list[Batch]:
        return [
            Batch(
                {name: tensor[start : start + size] for name, tensor in batch.inputs.items()},
                batch.labels[start : start + size],
                batch.row_ids[start : start + size],
            )
            for start in range(0, len(batch), size)
        ]

    return cut


@pytest.fixture
def distance() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]:
    """The largest relative L2 distance of two diagonals over their tensors.

    A gradient that is zero by symmetry (the bias of an attention's keys) is rounding noise in both:
    below 1e-9 of the largest tensor's norm it counts as that.
    """

    def largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
        assert found.keys() == expected.keys()
        floor = 1e-9 * max(float(tensor.double().norm()) for tensor in expected.values())
        assert floor > 0
        return max(
            float((found[name].double() - tensor.double()).norm())
            / max(float(tensor.double().norm()), floor)
            for name, tensor in expected.items()
        )

    return largest
