"""Tiny real models with tokenizers, saved by transformers as any user's checkpoint would be.

Each function writes a complete model folder (weights, config, tokenizer) to `path` and returns the
model it saved, in eval mode. Weights depend on `seed` alone, so two calls give the same bytes.
Nothing here touches the network. transformers is imported inside, it takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_WORDS = """
    the a cat dog bird fish sat ran flew swam on under over near mat log tree pond and then it
    was not very good bad great awful movie film plot actor I you we they like hate saw read book
    user assistant system : . , ? ! what is why how yes no hello world red green blue one two
    three four five
"""
WORDS = _WORDS.split()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
TEXTS = (
    "the cat sat on the mat .",
    "a dog ran under the tree and then it swam .",
    "the bird flew over the pond , near the log .",
    "I like the movie . the plot was very good !",
    "they hate the film . awful actor , bad plot .",
    "one two three four five",
    "what is it ? it is a red fish .",
    "we saw a great green book and read it",
)
"""A few lines of different lengths whose words are all known to the tokenizer."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' </s> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
VOCAB_SIZE = len(SPECIAL) + len(WORDS)


def tiny_tokenizer(
    path: Path, *, chat_template: str | None = CHAT_TEMPLATE, pad: bool = True, **extra: Any
) -> Any:
    """Save a word-level tokenizer (`VOCAB_SIZE` tokens, no added start token) into `path`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        **extra,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(path)
    return tokenizer


def tiny_llama(
    path: Path,
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = 2,
    shard_size: str | None = None,
    **config: Any,
) -> Any:
    """A Llama of 16 dimensions; `shard_size` (such as "8KB") splits it into several files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    model = _built(LlamaForCausalLM, LlamaConfig(**{**sizes, **config}), seed, dtype)
    return _saved(model, path, shard_size)


def tiny_gpt2(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_size: str | None = None,
    **config: Any,
) -> Any:
    """A GPT-2 of 16 dimensions: Conv1D layers, tied head, dropout in its config."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    model = _built(GPT2LMHeadModel, GPT2Config(**{**sizes, **config}), seed, dtype)
    return _saved(model, path, shard_size)


def tiny_bert_classifier(
    path: Path,
    *,
    labels: tuple[str, ...] = ("negative", "neutral", "positive"),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_size: str | None = None,
    **config: Any,
) -> Any:
    """A BERT sequence classifier of 16 dimensions, one class per name in `labels`."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }
    model = _built(BertForSequenceClassification, BertConfig(**{**sizes, **config}), seed, dtype)
    return _saved(model, path, shard_size)


def tiny_llama_classifier(
    path: Path, *, labels: tuple[str, ...] = ("negative", "positive"), seed: int = 0, **config: Any
) -> Any:
    """A Llama that classifies by its last token; its config names no padding token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": None,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }
    built = LlamaConfig(**{**sizes, **config})
    model = _built(LlamaForSequenceClassification, built, seed, torch.float32)
    return _saved(model, path, None)


def tiny_mixtral(
    path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any
) -> Any:
    """A Mixtral of 16 dimensions and 4 experts; the file holds one tensor per expert."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    model = _built(MixtralForCausalLM, MixtralConfig(**{**sizes, **config}), seed, dtype)
    return _saved(model, path, None)


def tiny_qwen3_moe(
    path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any
) -> Any:
    """A Qwen3-MoE of 16 dimensions, 4 experts in layer 1 and a dense layer 0."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [0],
        "max_position_embeddings": 128,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    model = _built(Qwen3MoeForCausalLM, Qwen3MoeConfig(**{**sizes, **config}), seed, dtype)
    return _saved(model, path, None)


def save_as_bin(model: Any, path: Path) -> None:
    """Save `model` as the older `pytorch_model.bin` beside its config, tied names and all."""
    path.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    tiny_tokenizer(path)


def _built(kind: Any, config: Any, seed: int, dtype: torch.dtype) -> Any:
    """Random weights from `seed`, large enough that logits differ from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # not buffers: rotary frequencies stay float32
    return model.eval()


def _saved(model: Any, path: Path, shard_size: str | None) -> Any:
    options = {} if shard_size is None else {"max_shard_size": shard_size}
    model.save_pretrained(path, **options)
    tiny_tokenizer(path)
    return model
