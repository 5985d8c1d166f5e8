"""`clmerge fisher-merge`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mergekit_cl.commands.merge_run import at_least_two, finish_merge
from mergekit_cl.commands.options import everywhere, merge_options, merge_output
from mergekit_cl.commands.parameters import Numbers
from mergekit_cl.commands.streams import Streams


@click.command("fisher-merge")
@click.argument("models", nargs=-1, required=True, metavar="A B [C...]", callback=at_least_two)
@click.option("--fisher", multiple=True, metavar="PATH", help="Sidecars, once per input, in order.")
@click.option("--weights", type=Numbers(), help="One per input; default equal.")
@click.option(
    "--normalize",
    type=click.Choice(["trace", "l2", "none"]),
    default="trace",
    show_default=True,
    help="What each model's Fisher is divided by.",
)
@click.option(
    "--floor",
    type=click.FloatRange(0),
    default=1e-6,
    show_default=True,
    help="Least Fisher, relative to the tensor's mean.",
)
@click.option(
    "--fallback",
    type=click.Choice(["linear", "base", "first"]),
    default="linear",
    show_default=True,
    help="Where every Fisher is exactly 0.",
)
@click.option("--base", metavar="PATH", help="For what falls back to it, and sign_conflict.")
@click.option(
    "--on-missing-fisher",
    type=click.Choice(["error", "linear", "base"]),
    default="error",
    show_default=True,
    help="Tensors that a sidecar leaves out.",
)
@click.option("--allow-mixed-fisher", is_flag=True, help="Take sidecars of different estimators.")
@click.option("--allow-stale-fisher", is_flag=True, help="Take sidecars of other weights.")
@merge_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    models: tuple[str, ...],
    fisher: tuple[str, ...],
    weights: tuple[float, ...] | None,
    normalize: Any,
    floor: float,
    fallback: Any,
    base: str | None,
    on_missing_fisher: Any,
    allow_mixed_fisher: bool,
    allow_stale_fisher: bool,
    **output: Any,
) -> int:
    """Merge models weighted by their Fisher sidecars.

    \b
    clmerge fisher A --data a.jsonl
    clmerge fisher B --data b.jsonl
    clmerge fisher-merge A B
    """
    if fisher and len(fisher) != len(models):
        raise click.UsageError(
            f"{len(models)} inputs need {len(models)} --fisher, not {len(fisher)}"
        )
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.methods.fisher import fisher_method
    from mergekit_cl.sidecar import sidecar_of

    checkpoints = [open_checkpoint(path) for path in models]
    given = fisher or (None,) * len(models)
    options = merge_output({**output, "allow_stale_fisher": allow_stale_fisher})
    method = fisher_method(
        checkpoints,
        [sidecar_of(c, path) for c, path in zip(checkpoints, given, strict=True)],
        weights=weights,
        normalize=normalize,
        floor=floor,
        fallback=fallback,
        on_missing=on_missing_fisher,
        base=None if base is None else open_checkpoint(base),
        allow_mixed=allow_mixed_fisher,
        selection=options.selection,
    )
    if output["carry"]:
        method = replace(method, carries=[find_carry(c) for c in checkpoints])
    return finish_merge(method, options, dry_run=output["dry_run"], streams=streams)
