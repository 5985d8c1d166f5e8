"""`--set KEY=VALUE`: one key of a config changed from the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from mergekit_cl.errors import OptionError
from mergekit_cl.tuning.keys import KeyPath, Node, at, child, choices, is_table, nearest, shown
from mergekit_cl.tuning.words import value_shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


SHORT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.)([eE][-+]?[0-9]+)?")
"""A number that YAML and people write, and TOML does not: `.5`, `1.`."""


def parse_set(text: str, schema: Node) -> tuple[KeyPath, Any]:
    """(path, value) of a `KEY=VALUE`; raises OptionError for a key that no config has.

    The value is TOML's, also with no digit on one side of a number's point; a bare word or path is
    text, a bare list is one of such values, and `null` takes out what may be absent. Where the key
    takes text alone, or a list of it, so it is read.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise OptionError(
            "a --set is a key and a value", detail=f"--set {text}", hint="--set optimizer.clip=0.5"
        )
    path = _path(key.strip(), schema, text)
    return path, _value(value.strip(), at(schema, path) or {})


def put(content: dict[str, Any], path: KeyPath, value: Any, text: str) -> None:
    """Set a value in place; tables that are not there are made. Raises OptionError."""
    here: Any = content
    for depth, key in enumerate(path[:-1]):
        if isinstance(key, int):
            here = here[_position(here, path[: depth + 1], text)]
            continue
        _check_table(here, path[:depth], text)
        inner = here.get(key)
        if not isinstance(inner, (dict, list)):
            inner = here[key] = {}
        here = inner
    last = path[-1]
    if not isinstance(last, int):
        _check_table(here, path[:-1], text)
    here[_position(here, path, text) if isinstance(last, int) else last] = value


def _check_table(here: Any, path: KeyPath, text: str) -> None:
    if not isinstance(here, dict):
        raise OptionError(
            "a --set needs a table where the config has something else",
            detail=f"--set {text}: {shown(path)} is {value_shown(here)}",
            hint=f"[{shown(path)}] in TOML, not [[{shown(path)}]]",
        )


def _position(values: Any, path: KeyPath, text: str) -> int:
    index = path[-1]
    count = len(values) if isinstance(values, list) else 0
    if not isinstance(values, list) or not isinstance(index, int) or index >= count:
        there = f"{shown(path[:-1])} has {count}, counted from 0"
        raise OptionError("a --set counts beyond the end", detail=f"--set {text}: {there}")
    return index


def _path(key: str, schema: Node, text: str) -> KeyPath:
    found: list[str | int] = []
    node: Node | None = schema
    parts = key.split(".")
    for number, part in enumerate(parts):
        here: str | int = int(part) if part.isdigit() and _is_list(node) else part
        if _names_freely(node):
            here = ".".join(parts[number:])  # the names of suites may hold dots
        inner = child(node, here)
        if inner is None:
            raise _unknown(schema, (*found, here), text, listed=_is_list(node))
        found.append(here)
        node = inner
        if here != part and not isinstance(here, int):
            break
    return tuple(found)


def _unknown(schema: Node, path: KeyPath, text: str, *, listed: bool) -> OptionError:
    if listed:
        wanted = shown((*path[:-1], 0, path[-1]))
        return OptionError(
            "a --set names one of several by its number, from 0",
            detail=f"--set {text}",
            hint=f"--set {wanted}=...",
        )
    near = nearest(schema, path)
    return OptionError(
        "a --set names a key that no config has",
        detail=f"--set {text}",
        hint=f"--set {near}=..." if near else "docs/train.md lists the keys",
    )


def _is_list(node: Node | None) -> bool:
    return any(one.get("type") == "array" for one in choices(node or {}))


def _names_freely(node: Node | None) -> bool:
    return any(isinstance(one.get("additionalProperties"), Mapping) for one in choices(node or {}))


def _value(text: str, node: Node) -> Any:
    optional = node.get("default", ...) is None or any(
        one.get("type") == "null" for one in node.get("anyOf", ())
    )
    if text == "null" and optional:
        return None
    value = _parsed(text)
    if _fits(value, node):
        return value
    kinds = choices(node)
    if any(one.get("type") == "string" for one in kinds):
        return text
    if _is_list(node) and not isinstance(value, list) and not is_table(child(node, 0)):
        return [_value(text, child(node, 0) or {})]
    return value


def _parsed(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if found.keys() == {"value"}:
        return found["value"]
    if text.startswith("[") and text.endswith("]"):
        return [_parsed(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    return float(text) if SHORT.fullmatch(text) else text


def _fits(value: Any, node: Node) -> bool:
    """Whether a value is of a kind that the key takes; whether it is allowed is asked later."""
    if isinstance(value, bool):
        return any(one.get("type") == "boolean" for one in choices(node))
    if isinstance(value, str):
        return any(one.get("type") == "string" for one in choices(node))
    return any(isinstance(value, TYPES.get(one.get("type", ""), ())) for one in choices(node))
