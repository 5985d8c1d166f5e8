"""Tiny models of many architectures, and which of their layers the variants of LoRA go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """build: in float64, of the same weights each time; untied: the same with a head of its own.

    The others name modules: linear layers; `split`, two of them for block diagonals in A and in B;
    the embedding; the head; convolutions; a module to save; parameters that stack experts. biased:
    whether the linear layers have biases. attention: of torch itself. grouped: a convolution in
    groups.
    """

    name: str
    build: Build
    linear: tuple[str, ...]
    split: tuple[str, str] | None = None
    embedding: str | None = None
    head: str | None = None
    convolutions: tuple[str, ...] = ()
    saved: str | None = None
    stacked: tuple[str, ...] = ()
    biased: bool = False
    attention: str | None = None
    grouped: str | None = None
    untied: Build | None = None


def hugging_face(kind: str, config: str, *, untied: bool = False, **settings: Any) -> Build:
    """A model of transformers by the names of its class and config."""

    def build() -> nn.Module:
        import transformers

        torch.manual_seed(11)
        chosen = getattr(transformers, config)(**settings)
        model: nn.Module = getattr(transformers, kind)(chosen)
        for parameter in model.parameters():
            if parameter.dim() < 2:  # biases of zero would hide that they are lost
                parameter.data += torch.randn_like(parameter) * 0.1
        if untied:
            own: Any = model
            own.config.tie_word_embeddings = False
            head = own.get_output_embeddings()
            head.weight = nn.Parameter(head.weight.detach().clone())
        return in_float64(model)

    return build


def in_float64(model: nn.Module) -> nn.Module:
    """The model in float64, of values that bfloat16 and float16 have too."""
    model = model.double()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(in_16_bits(value))
    return model


def in_16_bits(value: Tensor) -> Tensor:
    """The nearest values that bfloat16 and float16 both have, in float64."""
    narrow = value.bfloat16().double()
    return torch.where(narrow.abs() < 2.0**-14, 0.0, narrow)


class Mixed(nn.Module):
    """Layers that no language model has: attention of torch itself, convolutions of 1 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.one = nn.Conv1d(8, 6, 3)
        self.three = nn.Conv3d(1, 5, (2, 2, 1))
        self.grouped = nn.Conv1d(8, 6, 3, groups=2)
        self.last = nn.Linear(6, 7)

    def forward(self, ids: Tensor) -> Any:
        hidden = self.embed(ids)
        hidden, _ = self.attn(hidden, hidden, hidden)
        return self.last(self.one(hidden.transpose(1, 2)).mean(-1))


def mixed() -> nn.Module:
    torch.manual_seed(11)
    return in_float64(Mixed())


TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = {**TINY, "num_key_value_heads": 2, "tie_word_embeddings": False}
GPT2 = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
MIXTRAL = {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}
QWEN_MOE = {
    **LLAMA,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
GPT_OSS = {**LLAMA, "head_dim": 6, "num_local_experts": 3, "num_experts_per_tok": 2}
T5 = {"vocab_size": 40, "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
OPT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "ffn_dim": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 24,
}
VIT = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": 3}
WAV2VEC2 = {
    **TINY,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def llava() -> nn.Module:
    import transformers

    torch.manual_seed(11)
    text = transformers.LlamaConfig(**LLAMA)
    vision = transformers.CLIPVisionConfig(
        **{k: v for k, v in VIT.items() if k != "num_labels"}, projection_dim=24
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    return in_float64(transformers.LlavaForConditionalGeneration(config))


def known(
    kind: str,
    settings: dict[str, Any],
    linear: tuple[str, ...],
    split: tuple[str, str] | None = None,
    *,
    tied: bool = False,
    **layers: Any,
) -> Architecture:
    """A model of transformers: its class, the settings of its config, its layers."""
    config = kind.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model") + "Config"
    build = hugging_face(kind, config, **settings)
    untied = hugging_face(kind, config, untied=True, **settings) if tied else None
    return Architecture(kind, build, linear, split, untied=untied, **layers)


ATTENTION = ("q_proj", "v_proj", "o_proj")
DECODER = {"embedding": "embed_tokens", "head": "lm_head", "saved": "norm"}
STACKED = {"stacked": ("experts.gate_up_proj", "experts.down_proj")}
ZOO = (
    known(
        "LlamaForCausalLM",
        LLAMA,
        (*ATTENTION, "gate_proj", "down_proj"),
        ("o_proj", "q_proj"),
        **DECODER,
    ),
    known(
        "Qwen2ForCausalLM",
        {**LLAMA, "tie_word_embeddings": True},
        ("q_proj", "k_proj", "v_proj"),
        ("v_proj", "q_proj"),
        tied=True,
        biased=True,
        **DECODER,
    ),
    known(
        "GPT2LMHeadModel",
        GPT2,
        ("c_attn", "c_proj", "c_fc"),
        tied=True,
        embedding="wte",
        head="lm_head",
        saved="ln_f",
        biased=True,
    ),
    known(
        "BertForMaskedLM",
        TINY,
        ("query", "value", "attention.output.dense"),
        ("value", "query"),
        tied=True,
        embedding="word_embeddings",
        saved="LayerNorm",
        biased=True,
    ),
    known(
        "OPTForCausalLM",
        OPT,
        ("q_proj", "fc1", "fc2"),
        ("fc1", "fc2"),
        tied=True,
        embedding="embed_tokens",
        head="lm_head",
        saved="final_layer_norm",
        biased=True,
    ),
    known(
        "T5ForConditionalGeneration",
        T5,
        ("q", "v", "wo"),
        embedding="shared",
        head="lm_head",
        saved="final_layer_norm",
    ),
    known("MixtralForCausalLM", MIXTRAL, ATTENTION, ("o_proj", "q_proj"), **DECODER, **STACKED),
    known(
        "Qwen2MoeForCausalLM",
        QWEN_MOE,
        (*ATTENTION, "shared_expert.up_proj"),
        ("o_proj", "q_proj"),
        **DECODER,
        **STACKED,
    ),
    known("GptOssForCausalLM", GPT_OSS, ATTENTION, ("o_proj", "q_proj"), **DECODER, **STACKED),
    Architecture(
        "LlavaForConditionalGeneration",
        llava,
        (*ATTENTION, "linear_1"),
        ("o_proj", "v_proj"),
        "embed_tokens",
        "lm_head",
        convolutions=("patch_embedding",),
        saved="multi_modal_projector",
    ),
    known(
        "ViTForImageClassification",
        VIT,
        ("query", "value", "q_proj", "v_proj"),
        convolutions=("projection",),
        saved="classifier",
        biased=True,
    ),
    known(
        "ResNetForImageClassification",
        RESNET,
        ("classifier.1",),
        convolutions=("convolution",),
        saved="normalization",
        biased=True,
    ),
    known(
        "Wav2Vec2Model",
        WAV2VEC2,
        ("q_proj", "v_proj", "out_proj"),
        ("out_proj", "q_proj"),
        convolutions=("conv_layers.1.conv",),
        saved="layer_norm",
        biased=True,
    ),
    Architecture(
        "layers of torch",
        mixed,
        ("last",),
        None,
        "embed",
        convolutions=("one", "three"),
        saved="one",
        biased=True,
        attention="attn",
        grouped="grouped",
    ),
)
