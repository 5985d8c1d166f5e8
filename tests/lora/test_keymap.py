"""Keys of adapters find the tensors of files that other versions of transformers wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import MismatchError
from mergekit_cl.lora.adapter import Part, parse_key
from mergekit_cl.lora.keymap import OTHER_VERSION, SAME, KeyMap


def keys(place: Path, *names: str) -> KeyMap:
    save_file({name: torch.ones(2, 2) for name in names}, place / "model.safetensors")
    return KeyMap(open_checkpoint(place))


@pytest.mark.parametrize(
    ("key", "file", "rule"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q.weight", SAME),
        (
            "model.language_model.layers.0.q.weight",
            "language_model.model.layers.0.q.weight",
            OTHER_VERSION,
        ),
        (
            "language_model.model.layers.0.q.weight",
            "model.language_model.layers.0.q.weight",
            OTHER_VERSION,
        ),
        ("model.language_model.layers.0.q.weight", "model.layers.0.q.weight", OTHER_VERSION),
        ("lm_head.weight", "language_model.lm_head.weight", OTHER_VERSION),
        ("model.vision_tower.a.weight", "vision_tower.a.weight", OTHER_VERSION),
        ("visual.blocks.0.weight", "model.visual.blocks.0.weight", OTHER_VERSION),
        (
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            OTHER_VERSION,
        ),
        (
            "model.layers.1.block_sparse_moe.experts.2.w1.weight",
            "model.layers.1.mlp.experts.2.w1.weight",
            OTHER_VERSION,
        ),
        (
            "vit.layers.0.attention.q_proj.weight",
            "vit.encoder.layer.0.attention.attention.query.weight",
            OTHER_VERSION,
        ),
        ("bert.LayerNorm.weight", "bert.LayerNorm.gamma", OTHER_VERSION),
        ("layers.0.q.weight", "model.layers.0.q.weight", "with the prefix model"),
        ("bert.pooler.weight", "pooler.weight", "without the prefix bert"),
    ],
)
def test_a_key_finds_its_tensor_by_a_named_rule(
    tmp_path: Path, key: str, file: str, rule: str
) -> None:
    found = keys(tmp_path, file, "another.tensor.of.it.weight").find(key)
    assert found is not None
    assert (found.info.name, found.rule) == (file, rule)


def test_a_key_that_may_mean_two_tensors_is_refused(tmp_path: Path) -> None:
    both = keys(tmp_path, "first.norm.weight", "second.norm.weight")
    with pytest.raises(MismatchError, match="several tensors") as told:
        both.find("norm.weight")
    assert "first.norm.weight, second.norm.weight" in str(told.value.detail)


def test_a_key_of_another_module_finds_nothing(tmp_path: Path) -> None:
    assert keys(tmp_path, "model.layers.0.q.weight").find("q.weight") is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("base_model.model.a.q.lora_A.weight", ("a.q", "down")),
        ("base_model.model.a.q.lora_B.default.weight", ("a.q", "up", 0, False, "default")),
        ("base_model.model.a.q.lora_B.bias", ("a.q", "up_bias")),
        ("base_model.model.a.q.lora_magnitude_vector", ("a.q", "magnitude")),
        (
            "base_model.model.a.q.lora_magnitude_vector.default.weight",
            ("a.q", "magnitude", 0, False, "default"),
        ),
        ("base_model.model.e.lora_embedding_A", ("e", "down", 0, True)),
        ("base_model.model.e.lora_embedding_B.x", ("e", "up", 0, True, "x")),
        ("base_model.model.m.experts.base_layer.lora_A.weight", ("m.experts", "down", 1)),
        ("base_model.model.attn.base_layer.out_proj.lora_A.weight", ("attn.out_proj", "down")),
        ("base_model.model.e.token_adapter.trainable_tokens_delta", ("e", "rows")),
        ("base_model.model.q.base_layer.bias", ("q.bias", "whole")),
        ("base_model.model.head.modules_to_save.x.weight", ("head.weight", "whole", 0, False, "x")),
        ("base_model.model.head.weight", ("head.weight", "whole")),
        ("module.base_model.model.q.lora_A.weight", ("q", "down")),
        ("base_model.model._fsdp_wrapped_module.q.lora_A.weight", ("q", "down")),
    ],
)
def test_the_name_of_a_tensor_says_what_it_is(name: str, part: tuple[object, ...]) -> None:
    assert parse_key(name) == Part(name, *part)  # type: ignore[arg-type]
