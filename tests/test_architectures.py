"""Configs of two inputs: the same meaning in other words is no difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import CONFIG, write_model

from mergekit_cl.architectures import compare_configs
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import MismatchError

HEADS = {"num_attention_heads": 4, "hidden_size": 32}


def compared(folder: Path, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    pair = [
        write_model(folder / name, {"w": torch.ones(1)}, {**CONFIG, **config})
        for name, config in (("a", one), ("b", other))
    ]
    return compare_configs([open_checkpoint(path) for path in pair])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        ),
        ({}, {"rope_theta": 10000.0}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}},
        ),
        (HEADS, {**HEADS, "num_key_value_heads": 4}),
        (HEADS, {**HEADS, "head_dim": 8}),
        ({**HEADS, "head_dim": None}, {**HEADS, "head_dim": 8}),
        ({"sliding_window": None}, {}),
        ({"torch_dtype": "bfloat16"}, {"dtype": "float32"}),
        ({}, {"tie_word_embeddings": True}),
        ({}, {"tie_word_embeddings": False}),
    ],
)
def test_versions_of_transformers_that_write_the_same_in_other_words_agree(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert compared(tmp_path / "there", one, other) == []
    assert compared(tmp_path / "back", other, one) == []


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({}, {"rope_theta": 5e5}, "rope_theta: 10000.0 in"),
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 2e4}}, "rope_theta: 10000.0 in"),
        ({}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_factor: not said in"),
        ({"n_head": 4}, {"n_head": 2}, "n_head: 4 in"),
        ({"sliding_window": None}, {"sliding_window": 64}, "sliding_window: not said in"),
        ({**HEADS, "num_key_value_heads": 2}, HEADS, "num_key_value_heads: 2 in"),
        ({"num_experts_per_tok": 1}, {"num_experts_per_tok": 2}, "num_experts_per_tok: 1 in"),
        (
            {"text_config": {"rms_norm_eps": 1e-5}},
            {"text_config": {"rms_norm_eps": 1e-6}},
            "text_config.rms_norm_eps: 1e-05 in",
        ),
    ],
)
def test_what_changes_the_function_is_refused(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    with pytest.raises(MismatchError, match="architectures") as caught:
        compared(tmp_path, one, other)
    assert said in (caught.value.detail or "")


def test_what_does_not_is_told_with_both_values(tmp_path: Path) -> None:
    (told,) = compared(tmp_path, {"max_position_embeddings": 128}, {"id2label": {"0": "x"}})[:1]
    assert (
        told == f'config id2label: not said in {tmp_path / "a"}, {{"0": "x"}} in {tmp_path / "b"}'
    )
