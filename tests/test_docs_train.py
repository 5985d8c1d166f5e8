"""docs/train.md lists every key of a config, with what it takes and its default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.tuning.keys import (
    KeyPath,
    Node,
    at,
    child,
    choices,
    every_key,
    known,
    shown,
    whole,
)
from mergekit_cl.tuning.reading import read_config
from mergekit_cl.tuning.words import expected
from tests.pages import code_blocks, quoted, rows_of, section


def listed() -> dict[str, list[str]]:
    """{key: the other cells of its row}."""
    cells = [row for row in rows_of(section("train.md", "Config")) if len(row) == 4]
    return {quoted(row[0])[0]: row[1:] for row in cells if quoted(row[0])}


def keys() -> list[tuple[KeyPath, Node]]:
    """Keys that hold values: tables, and the list of tasks, have sections instead."""
    return [
        (path, node)
        for path, node in every_key(whole())
        if not known(node) and not known(child(node, 0))
    ]


def default(path: KeyPath, node: Mapping[str, Any]) -> str:
    (table,) = choices(at(whole(), path[:-1]) or {})
    if path[-1] in table.get("required", ()):
        return "required"
    value = node.get("default")
    if value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def test_every_key_of_a_config_is_listed_once() -> None:
    cells = [row[0] for row in rows_of(section("train.md", "Config")) if len(row) == 4]
    found = [quoted(cell)[0] for cell in cells if quoted(cell)]
    assert sorted(found) == sorted(shown(path) for path, _ in keys())


@pytest.mark.parametrize(("path", "node"), keys(), ids=lambda value: str(value)[:40])
def test_what_a_key_takes_and_its_default_are_those_of_the_schema(
    path: KeyPath, node: Node
) -> None:
    takes, preset, meaning = listed()[shown(path)]
    assert takes == expected(node)
    assert preset == default(path, node)
    assert meaning


def test_the_tables_of_a_config_have_sections() -> None:
    text = section("train.md", "Config")
    for key in known(whole()):
        node = at(whole(), (key,))
        assert bool(known(node) or known(child(node, 0))) == (f"### `{key}`" in text), key


def test_the_smallest_config_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(code_blocks(section("train.md", "Config"))[0])
    found = read_config(tmp_path / "config.toml")
    assert [task.name for task in found.task] == ["week-1"]
    for off in ("lora", "ewc", "replay", "ema", "gate", "drift"):
        assert getattr(found, off) is None
        assert f"`{off}`" in section("train.md", "Config")
