"""YAML as people mean it: the core schema of YAML 1.2, whose numbers are those of JSON.

YAML 1.1, which PyYAML reads by itself, takes `1e-4` for text, `no` for false, `1:30` for 90 and
the second of two equal keys.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

BOOLEAN = "tag:yaml.org,2002:bool"
NULL = "tag:yaml.org,2002:null"
CORE = (
    (BOOLEAN, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)


class Empty:
    """Stands where nothing was written after a key: it may mean defaults, or nothing at all."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Keeps PyYAML's resolvers too: what either reading takes for no text is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in CORE:
    _compiled = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag, _compiled, list(_first))
    _Dumper.add_implicit_resolver(_tag, _compiled, list(_first))


def _table(loader: Any, node: Any) -> dict[str, Any]:
    """A mapping whose keys are text as written, each once."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
        if key.value in seen:
            problem = f"the key {key.value} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        if key.tag != "tag:yaml.org,2002:merge":
            seen.add(key.value)
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


def _nothing(loader: Any, node: Any) -> Empty | None:
    return None if node.value else Empty()


def _whole(loader: Any, node: Any) -> int:
    return int(node.value)


def _number(loader: Any, node: Any) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _list(dumper: Any, values: list[Any]) -> Any:
    inline = not any(isinstance(value, (dict, list)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=inline)


def _text(dumper: Any, value: str) -> Any:
    # These end a line in YAML 1.1, so they have to be escaped, which double quotes alone can.
    style = '"' if set(value) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Loader.add_constructor("tag:yaml.org,2002:map", _table)
_Loader.add_constructor(NULL, _nothing)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def from_yaml(text: str) -> Any:
    """The content of one document; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def to_yaml(content: Any) -> str:
    """Text that `from_yaml` reads as the same content, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
