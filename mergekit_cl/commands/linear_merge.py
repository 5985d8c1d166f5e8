"""`clmerge linear-merge`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.merge_run import at_least_two, finish_merge
from mergekit_cl.commands.options import everywhere, merge_options, merge_output
from mergekit_cl.commands.streams import Streams
from mergekit_cl.commands.weighing import is_swept, sweep_or_merge, weight_options

if TYPE_CHECKING:
    from mergekit_cl.methods.method import Method


@click.command("linear-merge")
@click.argument("models", nargs=-1, required=True, metavar="A B [C...]", callback=at_least_two)
@weight_options
@click.option("--fisher", multiple=True, metavar="PATH", help="Sidecars, for what is predicted.")
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
    weights: Any,
    sweep: int | None,
    fisher: tuple[str, ...],
    no_normalize: bool,
    base: str | None,
    **output: Any,
) -> int:
    """Merge models by a weighted average.

    \b
    clmerge linear-merge A B
    clmerge linear-merge A B --sweep 11
    clmerge linear-merge A B C --weights 0.5,0.3,0.2 -o mean
    clmerge linear-merge A B --weights 1,1 --no-normalize --base BASE
    """
    if fisher and len(fisher) != len(models):
        raise click.UsageError(
            f"{len(models)} inputs need {len(models)} --fisher, not {len(fisher)}"
        )
    swept = is_swept(weights, sweep)
    if swept and no_normalize:
        raise click.UsageError(
            "a sweep is over weights of sum 1, which --no-normalize does not change: leave it out"
        )
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.methods.linear import linear_method
    from mergekit_cl.sidecar import sidecar_of, sidecars_for_report

    headers_only = output["dry_run"]
    checkpoints = [open_checkpoint(path, headers_only=headers_only) for path in models]
    opened = None if base is None else open_checkpoint(base, headers_only=headers_only)
    reported = not output["no_report"]
    carries = [find_carry(c) for c in checkpoints] if output["carry"] else []
    options = merge_output(output)
    given = [sidecar_of(c, path) for c, path in zip(checkpoints, fisher, strict=False)]

    def merge_at(weights: tuple[float, ...] | None) -> Method:
        method = linear_method(
            checkpoints,
            weights=weights,
            normalize=not no_normalize,
            base=opened if no_normalize or reported else None,
            sidecars=given
            if given and reported
            else sidecars_for_report(checkpoints, wanted=reported),
        )
        return replace(method, carries=carries)

    if not swept:
        return finish_merge(merge_at(weights), options, dry_run=output["dry_run"], streams=streams)
    every = given or [sidecar_of(checkpoint, None) for checkpoint in checkpoints]

    def sweep_at(weights: tuple[float, ...] | None) -> Method:
        method = linear_method(
            checkpoints, weights=weights, normalize=True, base=None, sidecars=every
        )
        return replace(method, carries=carries)

    return sweep_or_merge(
        merge_at,
        sweep_at,
        options,
        weights=weights,
        sweep=sweep,
        is_linear=True,
        dry_run=output["dry_run"],
        streams=streams,
    )
