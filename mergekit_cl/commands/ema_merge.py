"""`clmerge ema-merge`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mergekit_cl.commands.merge_run import at_least_two, finish_merge
from mergekit_cl.commands.options import everywhere, merge_output, update_options
from mergekit_cl.commands.streams import Streams


@click.command("ema-merge")
@click.argument(
    "models", nargs=-1, required=True, metavar="STATE ONLINE [ONLINE...]", callback=at_least_two
)
@click.option("--decay", type=click.FloatRange(0, 1), help="Share of the old state that is kept.")
@click.option(
    "--half-life", type=click.FloatRange(0, min_open=True), help="Updates until half of it is left."
)
@click.option("--warmup", is_flag=True, help="Smaller decays at first: (1 + t) / (10 + t).")
@click.option("--in-place", is_flag=True, help="Replace STATE by its successor.")
@update_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    models: tuple[str, ...],
    decay: float | None,
    half_life: float | None,
    warmup: bool,
    in_place: bool,
    **output: Any,
) -> int:
    """Move a state towards newer models: an exponential moving average.

    \b
    clmerge ema-merge STATE MONDAY TUESDAY --decay 0.9 -o NEXT
    clmerge ema-merge STATE TODAY --half-life 7 --in-place
    """
    if in_place == (output["output"] is not None):
        raise click.UsageError("give either -o NEXT or --in-place")
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.inplace import check_in_place, complete_update
    from mergekit_cl.methods.ema import ema_method
    from mergekit_cl.sidecar import sidecars_for_report

    if in_place and not output["dry_run"]:
        complete_update(models[0])
    checkpoints = [open_checkpoint(path, headers_only=output["dry_run"]) for path in models]
    if in_place:
        check_in_place(checkpoints[0])
        output["output"] = Path(models[0])
    method = ema_method(
        checkpoints,
        decay=decay,
        half_life=half_life,
        warmup=warmup,
        sidecars=sidecars_for_report(checkpoints, wanted=not output["no_report"]),
    )
    if output["carry"]:
        # Only the state has residuals to give back: the online models are what they are.
        method = replace(method, carries=[find_carry(checkpoints[0])])
    options = merge_output({**output, "in_place": in_place})
    return finish_merge(method, options, dry_run=output["dry_run"], streams=streams)
