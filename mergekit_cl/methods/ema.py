"""`ema-merge`: a state moves towards one checkpoint after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mergekit_cl.carry import recorded_updates
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import OptionError
from mergekit_cl.manifest import read_manifest
from mergekit_cl.merge.ema import decay_of_half_life, decays, ema_update
from mergekit_cl.merge.formula import Updates
from mergekit_cl.methods.linear import by_names_of_merge, first_operands, report_operands
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Ingredients, Operand
from mergekit_cl.sidecar import Sidecar


def ema_method(
    checkpoints: Sequence[Checkpoint],
    *,
    decay: float | None,
    half_life: float | None,
    warmup: bool,
    sidecars: Sequence[Sidecar | None],
) -> Method:
    """Update the first checkpoint with each of the others, in order.

    Raises OptionError unless exactly one of decay (0 to 1) and half_life (updates) is given.
    """
    if (decay is None) == (half_life is None):
        raise OptionError(
            "an average needs a decay or a half-life",
            detail="neither is given" if decay is None else "both are given",
            hint="--decay 0.999, or --half-life 700 (in updates)",
        )
    sidecars = by_names_of_merge(sidecars, checkpoints)
    constant = decay if decay is not None else decay_of_half_life(half_life or 0.0)
    before = recorded_updates(read_manifest(checkpoints[0].side_folder))
    each = decays(constant, len(checkpoints) - 1, warmup=warmup, updates=before)

    formula = Updates(each)

    def recipe(name: str, inputs: Sequence[Operand]) -> Ingredients:
        more, places = report_operands(name, len(inputs), sidecars)
        kernel = first_operands(partial(ema_update, decays=each), len(inputs))
        # Always float32: its residuals are exact, so that updates at once equal updates in turn.
        return Ingredients(kernel, more, places, frozenset({"F32", "BF16", "F16"}), None, formula)

    return Method(
        "ema-merge",
        {"decays": list(each), "updates_before": before},
        checkpoints,
        recipe,
        sidecars,
        newest_integers=True,
        updates=before + len(each),
    )
