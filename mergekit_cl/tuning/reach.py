"""What is held back in a task, and how strongly, for the log and for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mergekit_cl.continual.coverage import Coverage, listed

LITTLE = 0.05
"""Share of the Fisher below which a penalty hardly holds the earlier tasks."""

Kinds = Sequence[tuple[str, str]]


def describe_protection(reached: Coverage, strength: float, kinds: Kinds) -> dict[str, Any]:
    """A `protection` line of metrics.jsonl. kinds: (estimator, unit) of what is in the Fisher."""
    return {
        "lambda": strength,
        "fisher": [{"estimator": estimator, "unit": unit} for estimator, unit in kinds],
        "mass": reached.mass,
        "share": reached.share,
        "protected": len(reached.protected),
        "unprotected": list(reached.unprotected),
        "frozen": list(reached.frozen),
        "absent": list(reached.absent),
        "grown": dict(reached.grown),
    }


def protection_lines(reached: Coverage, strength: float, kinds: Kinds) -> Iterator[str]:
    """The same in words, and what is likely to be no help."""
    yield f"{reached.share:.1%} of the Fisher of earlier tasks is held back"
    words = " and ".join(f"{estimator}, {unit.replace('_', ' ')}" for estimator, unit in kinds)
    yield f"lambda {strength:g}, in the unit of that Fisher ({words})"
    if reached.share < LITTLE:
        yield (
            "warning: most of what earlier tasks need is not among the weights that are trained "
            "here, or not under their names; what is trained is hardly held back"
        )
    if len(kinds) > 1:
        yield "warning: one lambda cannot mean the same for Fishers of several estimators or units"
    for found in (
        listed("trained without a Fisher, so not held back", reached.unprotected),
        listed("in the Fisher, but frozen", reached.frozen),
        listed("in the Fisher, but no parameter", reached.absent),
        listed("grown, new rows not held back", tuple(reached.grown)),
    ):
        if found:
            yield found
