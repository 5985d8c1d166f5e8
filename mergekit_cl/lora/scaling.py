"""Rank and scale of each adapted module, by the adapter's config and its tensors' shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mergekit_cl.errors import FormatError, MismatchError
from mergekit_cl.lora.adapter import CONFIG, Adapter


def scale_of(adapter: Adapter, module: str, rank: int) -> float:
    """What a module's product is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.

    rank: of the stored factors, which decides; module: its path, which patterns are matched with.
    Raises MismatchError where the config says another rank, FormatError where it is unreadable.
    """
    said = _setting(adapter, "r", "rank_pattern", module)
    if said is not None and said != rank:
        raise MismatchError(
            "a factor has another rank than the adapter's config says",
            detail=f"{adapter.path}: {module}: rank {rank}, {CONFIG} says {said:g}",
            hint="use the config that was saved with these weights",
        )
    alpha = _setting(adapter, "lora_alpha", "alpha_pattern", module)
    if alpha is None:
        raise FormatError(
            "the adapter's config says no lora_alpha", detail=str(adapter.path / CONFIG)
        )
    return alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)


def _setting(adapter: Adapter, key: str, pattern_key: str, module: str) -> float | None:
    """A number of the config for one module: its pattern's, else the general one."""
    patterns = adapter.config.get(pattern_key) or {}
    where = adapter.path / CONFIG
    if not isinstance(patterns, Mapping):
        raise FormatError("a pattern of the adapter's config is no table", detail=f"{where}")
    hits = {pattern: value for pattern, value in patterns.items() if _matches(pattern, module)}
    if len({str(value) for value in hits.values()}) > 1:
        raise FormatError(
            f"several entries of {pattern_key} fit one module, with different values",
            detail=f"{where}: {module}: {', '.join(f'{p}: {v}' for p, v in hits.items())}",
            hint="the file does not keep their order; make them fit apart",
        )
    value = next(iter(hits.values())) if hits else adapter.config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FormatError(
            "a number of the adapter's config is none", detail=f"{where}: {key}: {value!s:.80}"
        )
    return float(value)


def _matches(pattern: str, module: str) -> bool:
    """Whether a pattern is the module's path or its end, from a dot on."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False
