"""`clmerge fisher-merge`."""

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


@click.command("fisher-merge")
@click.argument("models", nargs=-1, required=True, metavar="A B [C...]", callback=at_least_two)
@click.option("--fisher", multiple=True, metavar="PATH", help="Sidecars, once per input, in order.")
@weight_options
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
    weights: Any,
    sweep: int | None,
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
    clmerge fisher-merge A B --sweep 11
    """
    if fisher and len(fisher) != len(models):
        raise click.UsageError(
            f"{len(models)} inputs need {len(models)} --fisher, not {len(fisher)}"
        )
    swept = is_swept(weights, sweep)
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.methods.fisher import fisher_method, with_sums
    from mergekit_cl.sidecar import sidecar_of

    headers_only = output["dry_run"]
    checkpoints = [open_checkpoint(path, headers_only=headers_only) for path in models]
    given = fisher or (None,) * len(models)
    options = merge_output({**output, "allow_stale_fisher": allow_stale_fisher})
    sidecars, notes = with_sums(
        [sidecar_of(c, path) for c, path in zip(checkpoints, given, strict=True)]
    )
    opened = None if base is None else open_checkpoint(base, headers_only=headers_only)
    carries = [find_carry(c) for c in checkpoints] if output["carry"] else []

    def method_at(weights: tuple[float, ...] | None, base: Any = opened) -> Method:
        method = fisher_method(
            checkpoints,
            sidecars,
            weights=weights,
            normalize=normalize,
            floor=floor,
            fallback=fallback,
            on_missing=on_missing_fisher,
            base=base,
            allow_mixed=allow_mixed_fisher,
            selection=options.selection,
        )
        return replace(method, carries=carries, notes=[*notes, *method.notes])

    if not swept:
        return finish_merge(method_at(weights), options, dry_run=output["dry_run"], streams=streams)
    needed = opened if "base" in (fallback, on_missing_fisher) else None
    return sweep_or_merge(
        method_at,
        lambda weights: method_at(weights, needed),
        options,
        weights=weights,
        sweep=sweep,
        is_linear=False,
        dry_run=output["dry_run"],
        streams=streams,
    )
