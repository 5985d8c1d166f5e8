"""The variants of LoRA that PEFT writes, as settings of its config for one architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.lora.zoo import Architecture

Settings = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """settings: for an architecture, None where it has no such layers; one per adapter merged.

    unties: whether head and embedding part, where they are one. named: whether keys get the
    adapter's name, as checkpoints of some trainers have it.
    """

    name: str
    settings: Callable[[Architecture], list[Settings] | None]
    unties: bool = False
    named: bool = False


def linear(one: Architecture, **more: Any) -> Settings:
    """Plain LoRA on the linear layers."""
    return {"r": 4, "lora_alpha": 6, "target_modules": list(one.linear), **more}


def _patterns(one: Architecture) -> list[Settings]:
    first, last = one.linear[0], one.linear[-1]
    ranks = {f"{first}": 2}
    return [linear(one, rank_pattern=ranks, alpha_pattern={rf".*{last}": 3})]


def _split(one: Architecture) -> list[Settings] | None:
    if one.split is None:
        return None
    down, up = one.split
    blocks = {"target_modules_bd_a": [down], "target_modules_bd_b": [up], "nblocks": 2}
    return [linear(one, target_modules=list(one.split), use_bdlora=blocks)]


def _only(layers: Any, **more: Any) -> list[Settings] | None:
    if not layers:
        return None
    targets = [layers] if isinstance(layers, str) else list(layers)
    return [{"r": 4, "lora_alpha": 6, "target_modules": targets, **more}]


def _tokens(one: Architecture) -> list[Settings] | None:
    if one.embedding is None:
        return None
    return [linear(one, trainable_token_indices={one.embedding: [5, 1, 12]})]


def _stacked(one: Architecture) -> list[Settings] | None:
    if not one.stacked:
        return None
    parameters = {"target_parameters": list(one.stacked)}
    return [linear(one, target_modules=[one.linear[0]], **parameters)]


def _biased(one: Architecture, **more: Any) -> list[Settings] | None:
    return [linear(one, **more)] if one.biased else None


VARIANTS = (
    Variant("LoRA", lambda one: [linear(one)]),
    Variant("rsLoRA", lambda one: [linear(one, use_rslora=True)]),
    Variant("rank and alpha patterns", _patterns),
    Variant("two adapters", lambda one: [linear(one), linear(one, r=3, lora_alpha=5)]),
    Variant("DoRA", lambda one: [linear(one, use_dora=True)]),
    Variant("two DoRA", lambda one: [linear(one, use_dora=True), linear(one, r=3, use_dora=True)]),
    Variant("BD-LoRA", _split),
    Variant("lora_bias", lambda one: _biased(one, lora_bias=True)),
    Variant("bias all", lambda one: _biased(one, bias="all")),
    Variant("bias lora_only", lambda one: _biased(one, bias="lora_only")),
    Variant(
        "modules_to_save",
        lambda one: [linear(one, modules_to_save=[one.saved])] if one.saved else None,
    ),
    Variant("adapter's name in keys", lambda one: [linear(one)], named=True),
    Variant("embedding", lambda one: _only(one.embedding), unties=True),
    Variant("DoRA of an embedding", lambda one: _only(one.embedding, use_dora=True), unties=True),
    Variant("trained tokens", _tokens),
    Variant("head", lambda one: _only(one.head), unties=True),
    Variant("convolution", lambda one: _only(one.convolutions)),
    Variant("DoRA of a convolution", lambda one: _only(one.convolutions, use_dora=True)),
    Variant("attention of torch", lambda one: _only(one.attention)),
    Variant("grouped convolution", lambda one: _only(one.grouped)),
    Variant("stacked experts", _stacked),
)


def named(variants: tuple[Variant, ...] = VARIANTS) -> Mapping[str, Variant]:
    """Variants by their names."""
    return {variant.name: variant for variant in variants}
