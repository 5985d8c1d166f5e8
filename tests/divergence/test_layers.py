"""Which tensors belong together, for the names real models use."""

from __future__ import annotations

import pytest

from mergekit_cl.divergence.layers import layer_of

LAYERS = {
    "model.layers.3.mlp.up_proj.weight": "model.layers.3",
    "model.layers.11.self_attn.q_proj.bias": "model.layers.11",
    "model.layers.0.block_sparse_moe.experts.3.w1.weight": "model.layers.0",
    "model.layers.2": "model.layers.2",
    "transformer.h.7.attn.c_attn.weight": "transformer.h.7",
    "h.7.attn.c_attn.weight": "h.7",
    "bert.encoder.layer.4.attention.self.query.weight": "bert.encoder.layer.4",
    "roberta.encoder.layer.10.output.dense.bias": "roberta.encoder.layer.10",
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": "encoder.block.0",
    "decoder.block.5.layer.0.SelfAttention.q.weight": "decoder.block.5",
    "gpt_neox.layers.9.attention.dense.weight": "gpt_neox.layers.9",
    "vision_model.encoder.layers.2.mlp.fc1.weight": "vision_model.encoder.layers.2",
    "blocks.3.norm1.weight": "blocks.3",
    "model.embed_tokens.weight": "model.embed_tokens",
    "lm_head.weight": "lm_head",
    "model.norm.weight": "model.norm",
    "weight": "weight",
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_tensor_belongs_to_its_layer(name: str) -> None:
    assert layer_of(name) == LAYERS[name]


def test_layer_one_and_layer_ten_are_two() -> None:
    assert layer_of("model.layers.1.norm.weight") != layer_of("model.layers.10.norm.weight")
