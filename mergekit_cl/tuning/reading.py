"""A training config from its file and `--set`, checked; and the file that tells it again.

Paths that stand in the file are relative to the file; those of the command line, and the default
output, to the working directory. A config that was read holds absolute ones.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.checkpoint.urls import is_url
from mergekit_cl.errors import OptionError
from mergekit_cl.output.durable import write_durably
from mergekit_cl.tuning.keys import (
    KeyPath,
    Node,
    at,
    child,
    choices,
    is_table,
    nearest,
    shown,
    whole,
)
from mergekit_cl.tuning.overrides import parse_set, put
from mergekit_cl.tuning.plain import Empty, from_yaml, to_yaml
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.words import expected, value_shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIXES = (".toml", ".yaml", ".yml")
Problems = dict[KeyPath, str]


def read_config(path: Path, sets: Sequence[str] = (), output: Path | None = None) -> Config:
    """The config of a TOML or YAML file. sets: `KEY=VALUE`s. output: instead of the config's own.

    Raises OptionError that lists everything that is wrong with it, key by key.
    """
    schema = whole()
    problems: Problems = {}
    content = _placed(_content(path), schema, path.parent.absolute(), (), problems)
    changed: set[KeyPath] = set()
    for text in sets:
        key, value = parse_set(text, schema)
        value = _placed(value, at(schema, key) or {}, Path.cwd(), key, problems)
        put(content, key, value, text)
        changed.add(key)
    if output is not None or "output" not in content:
        default = str(schema["properties"]["output"]["default"])
        content["output"] = str(Path.cwd() / (default if output is None else output))
    return _checked(content, schema, problems, path, changed)


def config_text(config: Config) -> str:
    """A config as YAML, every key with the value it has."""
    return to_yaml(config.model_dump(mode="json", by_alias=True))


def write_config(path: Path, config: Config) -> None:
    """Write a config so that `read_config` gives an equal one."""
    write_durably(path, config_text(config).encode("utf-8"))


def _content(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(
            "a config is TOML or YAML, told apart by its name",
            detail=str(path),
            hint=f"name it {path.stem}.toml or {path.stem}.yaml",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        near = nearest_path(path) if isinstance(error, FileNotFoundError) else None
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise OptionError(
            "the config cannot be read",
            detail=f"{path}: {reason}",
            hint=None if near is None else str(near),
        ) from error
    if path.suffix.lower() == ".toml":
        try:
            read: dict[str, Any] = tomllib.loads(text)
            return read
        except tomllib.TOMLDecodeError as error:
            raise OptionError("the config is not TOML", detail=f"{path}: {error}") from error
    try:
        content = from_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise OptionError("the config is not YAML", detail=f"{path}: {_told(error)}") from error
    if content is None or isinstance(content, Empty):
        return {}
    if not isinstance(content, dict):
        raise OptionError(
            "the config is no table", detail=f"{path}: {value_shown(content)}", hint="key: value"
        )
    return content


def _told(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{where}{reason}"


def _placed(value: Any, node: Node, root: Path, path: KeyPath, problems: Problems) -> Any:
    """The same content with absolute paths; what is found wrong on the way goes to `problems`."""
    if isinstance(value, Empty):
        words = "{} for its defaults, or null for none" if is_table(node) else "a value"
        problems[path] = f"nothing stands there; write {words}"
        return None
    if isinstance(value, Mapping):
        return {
            key: _placed(inner, child(node, key) or {}, root, (*path, key), problems)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _placed(inner, child(node, index) or {}, root, (*path, index), problems)
            for index, inner in enumerate(value)
        ]
    formats = {one.get("format") for one in choices(node)}
    if not isinstance(value, str) or not value or formats.isdisjoint({"path", "checkpoint"}):
        return value
    return _absolute(value, root, path, problems, model="checkpoint" in formats)


def _absolute(text: str, root: Path, path: KeyPath, problems: Problems, *, model: bool) -> str:
    if is_url(text) or Path(text).is_absolute():
        return text
    place = root / Path(text).expanduser()
    if model and re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not place.exists():
        near = nearest_path(place)
        hints = [str(near)] * (near is not None) + [f"hf://{text} if this is a model on the hub"]
        problems[path] = f"no such file or directory: {place}; {', or '.join(hints)}"
    return str(place)


def _checked(
    content: dict[str, Any], schema: Node, problems: Problems, file: Path, changed: set[KeyPath]
) -> Config:
    try:
        config = Config.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            path = _existing(one["loc"], content, one["type"])
            problems.setdefault(path, _problem(path, one, content, schema))
    if not problems:
        return config
    raise _refusal(problems, schema, file, changed)


def _refusal(problems: Problems, schema: Node, file: Path, changed: set[KeyPath]) -> OptionError:
    def line(path: KeyPath, words: str) -> str:
        given = any(path[: len(one)] == one for one in changed)
        return f"{'--set ' if given else ''}{shown(path)}: {words}" if path else words

    lines = [line(path, words) for path, words in problems.items()]
    if len(lines) == 1:
        return OptionError("the config has a problem", detail=f"{file}: {lines[0]}")
    return OptionError(
        f"the config has {len(lines)} problems",
        detail="\n    ".join([f"{file}:", *lines]),
        hint="docs/train.md lists the keys",
    )


def _existing(location: KeyPath, content: Any, kind: str) -> KeyPath:
    """Pydantic's place of an error, without the names it gives to the kinds of a union."""
    found: list[str | int] = []
    for key in location:
        inside = isinstance(content, dict) and key in content
        inside = inside or (isinstance(content, list) and isinstance(key, int))
        if not inside:
            return (*found, key) if kind == "missing" else tuple(found)
        found.append(key)
        content = content[key]
    return tuple(found)


def _problem(path: KeyPath, error: Mapping[str, Any], content: Any, schema: Node) -> str:
    if error["type"] == "extra_forbidden":
        near = nearest(schema, path)
        return "no such key" + (f"; did you mean {near}?" if near else "")
    if error["type"] == "missing":
        return f"missing: {expected(at(schema, path))}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    value = content
    for key in path:
        value = value[key]
    return f"{expected(at(schema, path))}, not {value_shown(value)}"
