"""config.json of merge inputs: which differences change what the weights mean, which are only told.

Versions of transformers spell one setting differently, or leave out what is the default; settings
are compared by what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError

INFORMATIVE = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash"}
)
ARCHITECTURE = frozenset(
    {
        "activation_function",
        "alibi",
        "attention_multiplier",
        "attn_logit_softcapping",
        "embedding_multiplier",
        "feed_forward_proj",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "is_decoder",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "layer_types",
        "logits_scaling",
        "model_type",
        "n_head",
        "n_layer",
        "norm_epsilon",
        "norm_eps",
        "norm_topk_prob",
        "num_attention_heads",
        "num_experts_per_tok",
        "num_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_layers",
        "partial_rotary_factor",
        "position_embedding_type",
        "query_pre_attn_scalar",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
        "residual_multiplier",
        "rms_norm_eps",
        "rotary_dim",
        "rotary_emb_base",
        "rotary_pct",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "sliding_window",
        "tie_word_embeddings",
        "use_parallel_residual",
        "use_sliding_window",
    }
)
"""Settings under which the same weights compute another function."""

ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
OPAQUE = ("quantization_config",)  # refused where weights are looked at
ROPE_THETA = 10000.0  # the default of transformers where a config is silent
TIED = "tie_word_embeddings"
UNTIE = (
    "give the tied one a head of its own: in transformers set model.config.tie_word_embeddings = "
    "False, model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone()), and save it"
)


def compare_configs(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Notes on settings that differ between inputs.

    Raises MismatchError for those that make the same weights mean different functions.
    """
    known = [(c.path, meanings(c.config)) for c in checkpoints if c.config is not None]
    notes: list[str] = []
    wrong: dict[str, str] = {}
    for path, config in known[1:]:
        first_path, first = known[0]
        for key in sorted({*first, *config} - INFORMATIVE):
            if first.get(key) == config.get(key):
                continue
            here, there = _short(first, key), _short(config, key)
            said = f"config {key}: {here} in {first_path}, {there} in {path}"
            # A file says by its tensors whether its head is tied, where its config is silent.
            silent = key == TIED and not (key in first and key in config)
            if _matters(key) and not silent:
                wrong[said] = key
            elif not silent:
                notes.append(said)
    if wrong:
        only_tied = {key.rpartition(".")[2] for key in wrong.values()} == {TIED}
        raise MismatchError(
            "the inputs tie their heads differently"
            if only_tied
            else "the inputs are different architectures",
            detail="\n  ".join(wrong),
            hint=UNTIE if only_tied else "weights that mean different functions have no average",
        )
    return notes


def meanings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's settings with one spelling for each; of nested configs as `part.setting`.

    Rotary settings become `rope_...`; values that are the default where nothing is said are filled
    in.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and key not in OPAQUE:
            found |= {f"{key}.{inner}": one for inner, one in meanings(value).items()}
        elif key not in ROPE and key != "sliding_window":
            found[key] = value
    if (window := config.get("sliding_window")) is not None:
        found["sliding_window"] = window
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and heads:
        if config.get("num_key_value_heads") is None:
            found["num_key_value_heads"] = heads
        if config.get("head_dim") is None and isinstance(width, int):
            found["head_dim"] = width // heads
    return found | _rope(config)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of either spelling: `rope_theta` and `rope_scaling`, or `rope_parameters`."""
    said: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        part = config.get(key)
        if isinstance(part, Mapping):
            said.update(part)
    if "type" in said:
        said.setdefault("rope_type", said.pop("type"))
    said.setdefault("rope_type", "default")
    theta = config.get("rope_theta")
    said.setdefault("rope_theta", ROPE_THETA if theta is None else theta)
    return {f"rope_{key.removeprefix('rope_')}": value for key, value in said.items()}


def _matters(key: str) -> bool:
    setting = key.rpartition(".")[2]
    return setting in ARCHITECTURE or setting.startswith("rope_")


def _short(settings: Mapping[str, Any], key: str) -> str:
    return f"{json.dumps(settings[key])!s:.60}" if key in settings else "not said"
