"""JSON documents with one value replaced by something that should not be there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

NONSENSE = (None, True, -1, 0.5, float("nan"), "", "\x1b[31m../x\n", [], [None], {}, {"a": [{}]})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with one value replaced."""
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


def spoiled(document: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, document with the value there replaced), for each value and kind of nonsense."""
    for path in places(document):
        for value in NONSENSE:
            yield path, replaced(document, path, value)
