"""`clmerge linear-merge`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mergekit_cl.commands.merge_run import at_least_two, finish_merge
from mergekit_cl.commands.options import everywhere, merge_options, merge_output
from mergekit_cl.commands.parameters import Numbers
from mergekit_cl.commands.streams import Streams


@click.command("linear-merge")
@click.argument("models", nargs=-1, required=True, metavar="A B [C...]", callback=at_least_two)
@click.option("--weights", type=Numbers(), help="One per input; default equal.")
@click.option("--no-normalize", is_flag=True, help="Weights as they are, not divided by their sum.")
@click.option(
    "--base", metavar="PATH", help="Of sign_conflict; with --no-normalize, of A-base, B-base."
)
@merge_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    models: tuple[str, ...],
    weights: tuple[float, ...] | None,
    no_normalize: bool,
    base: str | None,
    **output: Any,
) -> int:
    """Merge models by a weighted average.

    \b
    clmerge linear-merge A B
    clmerge linear-merge A B C --weights 0.5,0.3,0.2 -o mean
    clmerge linear-merge A B --weights 1,1 --no-normalize --base BASE
    """
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.methods.linear import linear_method
    from mergekit_cl.sidecar import sidecars_for_report

    checkpoints = [open_checkpoint(path) for path in models]
    opened = None if base is None else open_checkpoint(base)
    method = linear_method(
        checkpoints,
        weights=weights,
        normalize=not no_normalize,
        base=opened if no_normalize or not output["no_report"] else None,
        sidecars=sidecars_for_report(checkpoints, wanted=not output["no_report"]),
    )
    if output["carry"]:
        method = replace(method, carries=[find_carry(c) for c in checkpoints])
    return finish_merge(method, merge_output(output), dry_run=output["dry_run"], streams=streams)
