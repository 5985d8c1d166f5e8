"""Which class of a classifier a row's label names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.errors import DataError


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's classes by index, from `id2label`, `label2id` or their count.

    config: the content of config.json.
    """
    by_index = config.get("id2label") or {}
    by_name = config.get("label2id") or {}
    if by_index:
        return tuple(
            str(name) for _, name in sorted(by_index.items(), key=lambda item: int(item[0]))
        )
    if by_name:
        return tuple(name for name, _ in sorted(by_name.items(), key=lambda item: int(item[1])))
    return tuple(f"LABEL_{index}" for index in range(int(config.get("num_labels", 2))))


def class_index(label: int | str, names: tuple[str, ...], where: str) -> int:
    """The index of the class a label names: a name goes before a number spelled as text.

    Raises DataError where the model has no such class.
    """
    if isinstance(label, str) and label in names:
        return names.index(label)
    try:
        index = int(label)
    except ValueError:
        index = -1
    if 0 <= index < len(names):
        return index
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(
        "a label is none of the model's classes",
        detail=f"{where}: {label!r:.60}; the model has {len(names)}: {shown}",
        hint=f"labels may be these names or numbers from 0 to {len(names) - 1}",
    )
