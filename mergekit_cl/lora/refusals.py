"""Adapters that cannot be merged into a base, each refused by name with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.compatible import check_mergeable
from mergekit_cl.errors import InputError
from mergekit_cl.lora.adapter import CONFIG, Adapter, adapter_names

UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_B_layout",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_rslora",
    }
)
"""Keys that decide the numbers of a merge."""

INFORMATIVE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "velora_config",
    }
)
"""Keys about training or about which modules got factors, which the tensors themselves tell."""

REFUSED = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only behind certain tokens, which "
    "no weight can do",
    "arrow_config": "Arrow routes every token to other adapters, which no weight can do",
    "kasa_config": "KaSA trained beside a base without its smallest singular components",
    "layer_replication": "the adapter belongs to a model with replicated layers, which the base "
    "does not have",
    "megatron_config": "the factors are those of Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA's update is a distribution, not one set of weights",
    "use_qalora": "QALoRA's factors act on pooled inputs of a quantised base",
}
"""Keys that must not be set: why."""

KEEP_THE_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica"})
CHANGE_THE_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}

CONVERT = "convert it to plain LoRA with PEFT: save_pretrained(..., " + (
    "path_initial_model_for_weight_conversion=INITIAL)"
)


def check_config(adapter: Adapter) -> None:
    """Raise InputError for an adapter that is no LoRA, or one that no weights can stand for."""
    config, where = adapter.config, adapter.path / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(
            "only LoRA adapters can be merged",
            detail=f"{where}: peft_type is {kind!s:.80}",
            hint="merge other kinds with PEFT itself: merge_and_unload",
        )
    for key, reason in REFUSED.items():
        if config.get(key):
            raise InputError(
                f"this kind of adapter cannot be merged: {reason}",
                detail=_at(key, adapter, config[key]),
            )
    _check_initialisation(adapter)
    unknown = sorted(
        key for key, value in config.items() if value and key not in UNDERSTOOD | INFORMATIVE
    )
    if unknown:
        raise InputError(
            "the adapter's config has settings that this version does not understand",
            detail=f"{where}: {', '.join(f'{key} = {config[key]!s:.60}' for key in unknown)}",
            hint="if they change nothing in the weights, remove them from the file",
        )
    if adapter.config.get("lora_B_layout") not in (None, "rank_major", "grouped_by_expert"):
        raise InputError(
            "the columns of the experts' lora_B are in an order that this version does not know",
            detail=f"{where}: lora_B_layout is {config['lora_B_layout']!s:.80}",
            hint="known are rank_major, which is PEFT's, and grouped_by_expert",
        )
    names = adapter_names(adapter.parts)
    if len(names) > 1:
        raise InputError(
            "the file holds several adapters",
            detail=f"{adapter.checkpoint.path}: {', '.join(sorted(names))}",
            hint="save each on its own: save_pretrained(..., selected_adapters=[NAME])",
        )


def informative(config: Mapping[str, Any]) -> list[str]:
    """Keys that are set and change nothing, sorted."""
    return sorted(key for key, value in config.items() if value and key in INFORMATIVE)


def check_base(base: Checkpoint) -> None:
    """Raise InputError for a base whose stored numbers are not its weights."""
    check_mergeable([base])


def _check_initialisation(adapter: Adapter) -> None:
    start = adapter.config.get("init_lora_weights", True)
    text = str(start).lower()
    for prefix, name in CHANGE_THE_BASE.items():
        if text.startswith(prefix):
            raise InputError(
                f"{name} changed the base when the adapter was made: added to the original it is "
                "wrong",
                detail=_at("init_lora_weights", adapter, start),
                hint=CONVERT,
            )
    if not isinstance(start, bool) and start is not None and text not in KEEP_THE_BASE:
        raise InputError(
            "the adapter was initialised in a way this version does not know",
            detail=_at("init_lora_weights", adapter, start),
            hint=CONVERT,
        )


def _at(key: str, adapter: Adapter, value: object) -> str:
    return f"{adapter.path / CONFIG}: {key} is {value!s:.80}"
