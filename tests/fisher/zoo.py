"""Architectures of transformers, built tiny from their configs, with ragged rows for each.

transformers is imported inside: it takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fisher.batch import IGNORE, Batch

VOCABULARY, CLASSES = 61, 3
LENGTHS = (7, 11, 4)

_SIZES = {
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
    "experts_implementation": "eager",  # grouped products know no float64
}
_EXPERTS = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
_LATENT = {
    **_EXPERTS,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "head_dim": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}


_CODERS = {
    "d_model": 16,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
}


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    family: transformers' name for the config class. head: what follows it in the model's name.
    rows: text, image, speech or pairs (of source and target). sizes: where they differ.
    """

    family: str
    head: str = "ForCausalLM"
    rows: str = "text"
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's class in transformers."""
        return self.family.removesuffix("Text") + self.head


CLASSIFIES = "ForSequenceClassification"
ZOO = (
    Architecture("Llama"),
    Architecture("Llama", CLASSIFIES),
    Architecture("Mistral"),
    Architecture("Qwen2"),
    Architecture("Qwen3", sizes={"head_dim": 4, "tie_word_embeddings": True}),
    Architecture("Gemma", sizes={"head_dim": 4}),
    Architecture("Gemma2", sizes={"head_dim": 4}),
    Architecture("Gemma3Text", sizes={"head_dim": 4}),
    Architecture("Phi"),
    Architecture("Phi3"),
    Architecture("Olmo2"),
    Architecture("SmolLM3"),
    Architecture("Cohere"),
    Architecture("Granite"),
    Architecture("Starcoder2"),
    Architecture("StableLm"),
    Architecture("GPT2", "LMHeadModel", sizes={"n_embd": 16, "n_layer": 2, "n_head": 4}),
    Architecture("GPTNeoX"),
    Architecture("GPTBigCode", sizes={"n_embd": 16, "n_layer": 2, "n_head": 4}),
    Architecture("OPT", sizes={"ffn_dim": 24, "word_embed_proj_dim": 16}),
    Architecture("Falcon"),
    Architecture("Bloom", sizes={"n_head": 4, "n_layer": 2}),
    Architecture("Mixtral", sizes={"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("Qwen3Moe", sizes={**_EXPERTS, "head_dim": 4, "num_experts": 4}),
    Architecture("Olmoe", sizes={"num_experts": 4, "num_experts_per_tok": 2}),
    Architecture("DeepseekV2", sizes={**_LATENT, "topk_method": "greedy"}),
    Architecture("DeepseekV3", sizes=_LATENT),
    Architecture("GptOss", sizes={"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "Llama4Text",
        sizes={"head_dim": 4, "num_local_experts": 4, "intermediate_size_mlp": 24},
    ),
    Architecture("GraniteMoe", sizes={"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("Mamba", sizes={"num_hidden_layers": 1, "state_size": 4, "time_step_rank": 2}),
    Architecture("Bert", CLASSIFIES),
    Architecture("Bert", "ForMaskedLM"),
    Architecture(
        "DistilBert", CLASSIFIES, sizes={"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
    ),
    Architecture("Roberta", CLASSIFIES),
    Architecture("Electra", CLASSIFIES, sizes={"embedding_size": 16}),
    Architecture("ModernBert", CLASSIFIES, sizes={"local_attention": 8}),
    Architecture("DebertaV2", CLASSIFIES),
    Architecture("Albert", CLASSIFIES, sizes={"embedding_size": 8, "num_hidden_groups": 1}),
    Architecture("ViT", "ForImageClassification", "image", {"image_size": 8, "patch_size": 4}),
    Architecture("Dinov2", "ForImageClassification", "image", {"image_size": 8, "patch_size": 4}),
    Architecture(
        "ConvNext",
        "ForImageClassification",
        "image",
        {
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_stages": 2,
            "image_size": 16,
            "patch_size": 2,
        },
    ),
    Architecture(
        "ResNet",
        "ForImageClassification",
        "image",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "image_size": 16,
        },
    ),
    Architecture(
        "T5",
        "ForConditionalGeneration",
        "pairs",
        {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
    ),
    Architecture("Bart", "ForConditionalGeneration", "pairs", _CODERS),
    Architecture(
        "Whisper",
        "ForConditionalGeneration",
        "speech",
        {**_CODERS, "num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 32},
    ),
)


def build(architecture: Architecture, scale: float = 0.25) -> nn.Module:
    """The model, with weights from one seed; at the usual scale its softmax is far from flat."""
    import transformers

    config = getattr(transformers, architecture.family + "Config")
    sizes = {**_SIZES, **architecture.sizes}
    if "Classification" in architecture.head:
        sizes["num_labels"] = CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: nn.Module = getattr(transformers, architecture.name)(config(**sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.nan_to_num(parameter))  # some are left for a loader to fill
                spread = scale if parameter.dim() > 1 else scale / 2.5
                parameter.add_(torch.randn_like(parameter) * spread)
    return model.train()


def ragged(architecture: Architecture) -> Batch:
    """Rows of different lengths; images and speech have one size, their targets do not."""
    random = torch.Generator().manual_seed(0)
    size, width = len(LENGTHS), max(LENGTHS)
    ids = torch.zeros(size, width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for index, length in enumerate(LENGTHS):
        ids[index, :length] = torch.randint(3, VOCABULARY, (length,), generator=random)
        mask[index, :length] = 1
        labels[index, : length - 1] = ids[index, 1:length]
    classes = torch.arange(size) % CLASSES
    names = tuple(f"row {index} of {length}" for index, length in enumerate(LENGTHS))
    text = {"input_ids": ids, "attention_mask": mask}
    if architecture.rows == "image":
        side = architecture.sizes["image_size"]
        pixels = torch.randn(size, 3, side, side, generator=random)
        return Batch({"pixel_values": pixels}, classes, names)
    if architecture.rows == "speech":
        sound = torch.randn(size, 6, 16, generator=random)
        return Batch({"input_features": sound, "decoder_input_ids": ids}, labels, names)
    if architecture.rows == "pairs":
        return Batch({**text, "decoder_input_ids": ids.flip(0)}, labels.flip(0), names)
    return Batch(text, classes if "Classification" in architecture.head else labels, names)
