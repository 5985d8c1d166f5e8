"""Whether averaged models are so far apart that the average loses what each had learned."""

from __future__ import annotations

from mergekit_cl.divergence.summary import Divergence

FAR = 0.87
"""Cosine of a merge with a parent. Equal parts of two models whose own cosine is one half come to
this; tunes of one base come to more than .95, two that were trained apart to .71."""


def far_apart(divergence: Divergence) -> list[str]:
    """A note on the parent that is farthest from a merge, if that is far; else none."""
    known = [
        (cosine, one.parent)
        for one in divergence.model
        if (cosine := one.metrics["cosine"]) is not None
    ]
    if not known or min(known)[0] >= FAR:
        return []
    cosine, parent = min(known)
    return [
        f"the inputs are far apart (cosine {cosine:.2f} between the merge and {parent}): averages "
        "of models that were not tuned from one base lose features of each; merge tunes of one "
        "base, and let clmerge gate judge the result on held-out rows"
    ]
