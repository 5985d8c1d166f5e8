"""docs/train.md lists every key of a config, with what it takes and its default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.tuning.advice import Facts, advice
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
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.words import expected
from tests.pages import code_blocks, quoted, rows_of, section

WRONG = "What goes wrong, and where you are told"


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


def test_the_warnings_that_the_page_quotes_are_given() -> None:
    cells = [row[1] for row in rows_of(section("train.md", WRONG)) if len(row) == 2]
    quotes = [found for cell in cells for found in re.findall(r"[Ww]arning `([^`]+)`", cell)]
    assert len(quotes) == 10
    ewc = {"lambda": 1.0, "sidecars": ["/f"], "anchors": ["/m"]}
    worst = {
        "model": "/m",
        "task": [{"name": name, "data": ["/d"]} for name in "ab"],
        "lora": {"rank": 32},
        "ewc": ewc,
        "replay": {"rows": 1},
        "ema": {"half_life": 1e6},
        "gate": {},
        "drift": {"calibration": 10_000},
    }
    facts = Facts((100, 100), 100, 0, {"a": 9, "b": 9}, (frozenset("xy"), frozenset("z")), (None,))
    given = advice(Config.model_validate(worst), facts)
    whole = Config.model_validate({key: worst[key] for key in ("model", "task")})
    given += advice(whole, replace(facts, stored=frozenset({"BF16"})))
    for quote in quotes:
        assert any(quote in one for one in given), quote
