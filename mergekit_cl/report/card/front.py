"""The YAML at the top of a model card: read from the inputs' cards, written for the merge."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Front = dict[str, Any]
_BLOCK = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
TAGS = ("merge", "clmerge")
OF_THE_INPUT_ALONE = ("model-index", "model_name", "new_version")
"""Results and a name that were an input's, and no longer hold."""


def split_card(text: str) -> tuple[Front, str]:
    """What a card's YAML says, and the rest; a card whose YAML cannot be read is all rest."""
    import yaml

    found = _BLOCK.match(text)
    if not found:
        return {}, text
    try:
        said = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text
    if said is None:
        said = {}
    return (said, text[found.end() :]) if isinstance(said, dict) else ({}, text)


def merged_front(inputs: Sequence[tuple[str, Front]]) -> Front:
    """The YAML of a merge of inputs, (path, what its card says): the first's, and what it is now.

    `base_model` holds the hub's names: of the inputs, and for one that lies elsewhere of what its
    card says it was made from.
    """
    first = inputs[0][1]
    kept = {key: value for key, value in first.items() if key not in OF_THE_INPUT_ALONE}
    for key in ("base_model", "base_model_relation"):
        kept.pop(key, None)
    names = list(dict.fromkeys(name for path, said in inputs for name in _hub_names(path, said)))
    own = {"base_model": names, "base_model_relation": "merge"} if names else {}
    tags = [tag for tag in _listed(first.get("tags")) if isinstance(tag, str)]
    return {**kept, **own, "tags": list(dict.fromkeys((*tags, *TAGS)))}


def licenses(inputs: Iterable[tuple[str, Front]]) -> Mapping[str, str]:
    """{path: license} of the inputs whose cards name one."""
    return {path: said["license"] for path, said in inputs if isinstance(said.get("license"), str)}


def front_text(front: Front) -> str:
    """The block of YAML that begins a card."""
    import yaml

    said = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{said}---\n"


def _hub_names(path: str, said: Front) -> list[str]:
    if path.startswith("hf://"):
        return [path.removeprefix("hf://").partition("@")[0]]
    named = [name for name in _listed(said.get("base_model")) if isinstance(name, str)]
    return [name for name in named if _HUB_NAME.fullmatch(name)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
