"""LoRA and other PEFT adapters, by their config and their tensors' names and shapes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import TensorInfo
from mergekit_cl.errors import InputError
from mergekit_cl.inspecting.plain import mapping, number, plain

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
KEYS = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "target_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
)
_DOWN = re.compile(r"\.lora_(?:embedding_)?A(?:\.|$)")
_UP = re.compile(r"\.lora_(?:embedding_)?B(?:\.|$)")


def is_adapter_folder(folder: Path) -> bool:
    """Whether PEFT would load an adapter from this folder."""
    return any((folder / name).is_file() for name in (CONFIG, *FILES))


def adapter_weights(folder: Path) -> Path:
    """The weight file of an adapter; raises InputError where there is none."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            "the folder holds the config of an adapter, but no weights",
            detail=f"{folder}: none of {', '.join(FILES)}",
            hint="fetch or save the adapter again",
        )
    return found


def is_adapter(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a low-rank adapter."""
    return any(_DOWN.search(name) for name in names)


def describe_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """What the config says, beside what the tensors show.

    scale: what B @ A is multiplied by; None where it differs between modules or is not said.
    ranks: {rank: modules}, from shapes. pairs: modules adapted. others: tensors besides.
    """
    downs = {name: t.shape for name, t in tensors.items() if _DOWN.search(name)}
    ups = sum(1 for name in tensors if _UP.search(name))
    ranks = Counter(shape[0] for shape in downs.values() if shape)
    return {
        **{key: plain(config.get(key)) for key in KEYS},
        "scale": _scale(config),
        "pairs": len(downs),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "others": len(tensors) - len(downs) - ups,
        "config": plain(dict(config)),
    }


def _scale(config: Mapping[str, Any]) -> float | None:
    rank, alpha = number(config.get("r")), number(config.get("lora_alpha"))
    patterns = (mapping(config.get(key)) for key in ("rank_pattern", "alpha_pattern"))
    if rank is None or alpha is None or rank <= 0 or any(patterns):
        return None
    return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)
