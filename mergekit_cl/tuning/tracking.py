"""What trackers are told of a line of the log: its numbers, under names that say of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def numbers_of(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """{name: number} of one line; those of a step under their own names, others as `kind/name`.

    An evaluation has `evaluation/tasks/TASK/loss`, a look of the gate `gate/SUITE/AGAINST/delta`
    with `lower` and `upper`.
    """
    flat = dict(values)
    for one in flat.pop("comparisons", ()):
        low, high = one["interval"] or (None, None)
        flat[f"{one['suite']}/{one['against']}"] = {**one, "lower": low, "upper": high}
    return dict(_flat("" if kind == "step" else f"{kind}/", flat))


def _flat(above: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{above}{key}/", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{above}{key}", value
