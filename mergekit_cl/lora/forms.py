"""How factors of some shapes make an update of a weight of some shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mergekit_cl.errors import FormatError, InputError, MismatchError
from mergekit_cl.lora.edits import Form

Shape = tuple[int, ...]

CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Models whose stacked experts are stored (experts, in, out)."""


def form_of(
    weight: Shape, down: Shape, up: Shape, *, embedding: bool, transposed: bool
) -> Form | None:
    """The form in which factors fit a weight; None where they fit in none.

    transposed: whether a square weight is stored (in, out). Raises InputError for the factors of
    a grouped convolution.
    """
    if embedding:
        fits = len(weight) == 2 and (up, down) == ((weight[1], down[0]), (down[0], weight[0]))
        return "embedding" if fits else None
    if len(weight) > 2:
        return _convolution(weight, down, up)
    if len(weight) != 2 or len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        return None
    linear = (up[0], down[1]) == weight
    crossed = (down[1], up[0]) == weight
    if linear and crossed:
        return "transposed" if transposed else "linear"
    return "linear" if linear else "transposed" if crossed else None


def _convolution(weight: Shape, down: Shape, up: Shape) -> Form | None:
    if len(down) != len(weight) or len(up) != len(weight):
        return None
    if weight[1] != down[1] or up[1] != down[0]:
        raise InputError(
            "factors of a grouped convolution cannot be merged: their product is no weight of it",
            detail=f"weight {list(weight)}, factors {list(down)} and {list(up)}",
        )
    plain = math.prod(up[2:]) == 1
    return "convolution" if plain and up[0] == weight[0] and down[2:] == weight[2:] else None


def stores_transposed(
    config: Mapping[str, Any] | None, adapter: Mapping[str, Any], path: str
) -> bool:
    """Whether a square weight is that of a Conv1D, stored (in, out)."""
    model = (config or {}).get("model_type")
    if model in CONV1D_MODELS:
        return path.rpartition(".")[2] in CONV1D_LAYERS
    return bool(adapter.get("fan_in_fan_out")) if model is None else False


def stores_experts_transposed(config: Mapping[str, Any] | None) -> bool:
    """Whether square stacked experts are stored (in, out) each."""
    parts = (config or {}, (config or {}).get("text_config") or {})
    return any(part.get("model_type") in TRANSPOSED_EXPERTS for part in parts)


def diagonal_blocks(adapter: Mapping[str, Any], path: str) -> tuple[int, int]:
    """Blocks of (down, up) of a module that BD-LoRA made; 1 where a factor is full.

    Source: BD-LoRA as PEFT has it, where names are substrings of the module's own name.
    """
    settings = adapter.get("use_bdlora")
    if not settings:
        return 1, 1
    if not isinstance(settings, Mapping) or not isinstance(settings.get("nblocks"), int):
        raise FormatError("the adapter's config has no nblocks", detail=f"use_bdlora: {settings}")
    leaf = path.rpartition(".")[2]

    def blocks(key: str) -> int:
        return int(settings["nblocks"]) if any(n in leaf for n in settings.get(key) or ()) else 1

    return blocks("target_modules_bd_a"), blocks("target_modules_bd_b")


def misfit(path: object, module: str, weight: Shape, down: Shape, up: Shape) -> MismatchError:
    """The error for an adapter of another model."""
    return MismatchError(
        "the adapter is for weights of another shape",
        detail=f"{path}: {module}: factors {list(down)} and {list(up)}, the base has "
        f"{list(weight)}",
        hint="use the base the adapter was trained on",
    )
