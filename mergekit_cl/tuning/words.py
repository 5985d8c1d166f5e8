"""What a key of a config takes, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mergekit_cl.tuning.keys import Node, choices, is_table


def expected(node: Node | None) -> str:
    """What a key takes, in words."""
    words = [_kind(one) for one in choices(node or {})]
    return ", or ".join(dict.fromkeys(words))


def _kind(node: Node) -> str:
    kind = node.get("type")
    if "enum" in node or "const" in node:
        return " or ".join(str(value) for value in node.get("enum", [node.get("const")]))
    if kind == "object":
        extra = node.get("additionalProperties")
        return f"a table of {_many(extra)}" if isinstance(extra, Mapping) else "a table"
    if kind == "array":
        return _list(node)
    if kind in ("number", "integer"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(node)
    if kind == "boolean":
        return "true or false"
    if "description" in node:
        return str(node["description"])
    return {"path": "a path", "checkpoint": "a model's path"}.get(node.get("format", ""), "text")


def _list(node: Node) -> str:
    if "prefixItems" in node:
        parts = node["prefixItems"]
        return f"a list of {len(parts)}, each {_kind(parts[0])}"
    items = node.get("items", {})
    if is_table(items):
        return "a list of tables ([[...]] in TOML)"
    least = f" with {node['minItems']} or more" if node.get("minItems", 0) > 1 else ""
    return f"a list of {_many(items)}{least}"


def _many(node: Node) -> str:
    if node.get("type") == "array":
        return "lists of " + _many(node.get("items", {}))
    if "enum" in node:
        return " or ".join(map(str, node["enum"]))
    if node.get("type") == "number":
        return "numbers" + _bounds(node)
    return "paths" if "format" in node else "texts"


def _bounds(node: Node) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    most = f"at most {high}" if high is not None else f"below {below}" if below is not None else ""
    if low is not None and most:
        return f" from {low} to {most.removeprefix('at most ')}"
    least = (
        f"of {low} or more" if low is not None else f"above {above}" if above is not None else ""
    )
    return "".join(f" {part}" for part in (least, "and" if least and most else "", most) if part)


def value_shown(value: Any) -> str:
    """A value as the file may have spelled it, shortened."""
    if isinstance(value, Mapping):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
