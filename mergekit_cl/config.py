"""config.json of an output: what it must say of the weights that were written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint.dtypes import long_name


def with_dtype(text: str, dtype: str) -> str:
    """The text of a config.json, changed only if it names another dtype than the weights have."""
    config: dict[str, Any] = json.loads(text)
    keys = [key for key in ("dtype", "torch_dtype") if isinstance(config.get(key), str)]
    if all(config[key] == long_name(dtype) for key in keys):
        return text
    for key in keys:
        config[key] = long_name(dtype)
    return json.dumps(config, indent=2) + "\n"


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The vocabulary size that a config names, its own or its text model's."""
    for part in (config, config.get("text_config")):
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if isinstance(size, int):
            return size
    return None


def with_vocabulary(text: str, rows: int, smallest: Mapping[str, Any]) -> str:
    """The text of a config.json for a vocabulary cut to `rows`, edited only where it must be.

    Ids of special tokens that were cut off become those of `smallest`, the config of the input
    with so many rows: a model cannot be built with a padding token that it lacks.
    """
    config: dict[str, Any] = json.loads(text)
    nested, other = config.get("text_config"), smallest.get("text_config")
    parts = [(config, smallest)]
    if isinstance(nested, dict):
        parts.append((nested, other if isinstance(other, dict) else {}))
    for part, model in parts:
        if isinstance(part.get("vocab_size"), int):
            part["vocab_size"] = rows
        for key in (key for key in part if key.endswith("_token_id")):
            ids = part[key] if isinstance(part[key], list) else [part[key]]
            if any(isinstance(one, int) and one >= rows for one in ids):
                part[key] = model.get(key)
    if config == json.loads(text):
        return text
    edited = re.sub(r'("vocab_size"\s*:\s*)\d+', rf"\g<1>{rows}", text)
    return edited if json.loads(edited) == config else json.dumps(config, indent=2) + "\n"


def with_values(text: str, values: Mapping[str, object]) -> str:
    """The text of a config.json with other values, each where it is: in itself or its text model's.

    What neither has is added to itself.
    """
    config: dict[str, Any] = json.loads(text)
    nested = config.get("text_config")
    for key, value in values.items():
        parts = [part for part in (config, nested) if isinstance(part, dict) and key in part]
        for part in parts or [config]:
            part[key] = value
    return text if config == json.loads(text) else json.dumps(config, indent=2) + "\n"


def config_text(root: Path) -> str | None:
    """The config.json of a checkpoint's folder as it stands."""
    path = root / "config.json"
    return path.read_text() if path.is_file() else None
