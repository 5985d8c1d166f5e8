"""Where a tensor stands in the heat map: its row is its layer, its column what it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergekit_cl.divergence.layers import layer_of

NAMED = 3


def kind_of(name: str) -> str:
    """What a tensor is in its layer, with numbers as one: experts of one kind share a column.

    'model.layers.3.mlp.experts.17.up_proj.weight' -> 'mlp.experts.*.up_proj.weight'.
    """
    rest = name.removeprefix(layer_of(name)).lstrip(".") or name
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", rest)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts 'layers.2' before 'layers.10'."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def heading(paths: Sequence[str]) -> str:
    """The models that a page speaks of, in a line."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more
