"""Values from foreign files as plain JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mergekit_cl.errors import FormatError, InputError

DEPTH = 40
"""Deeper values are cut: no config or manifest nests so far, and a hostile one could go on."""


def plain(value: Any, depth: int = 0) -> Any:
    """The same value as JSON allows it: NaN and infinities as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == DEPTH:
        return "..."
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    return [plain(item, depth + 1) for item in value]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises InputError or FormatError naming the file."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError("the file cannot be read", detail=f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError("the file is not JSON", detail=f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise FormatError("the file is not a JSON object", detail=str(path))
    return found


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one: what a file says may be anything."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
