"""`--sweep` and `--weights auto`: look at a grid of weights, then tell, or merge with the best."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.again import line_again
from mergekit_cl.commands.merge_run import finish_merge
from mergekit_cl.commands.parameters import Weights
from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.merging import OutputOptions
    from mergekit_cl.methods.method import Method

    MethodAt = Callable[[tuple[float, ...] | None], Method]

POINTS = 11
MOST_POINTS = 1001


def weight_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a merge whose weights may be chosen by what they would cost."""
    sweep = click.option(
        "--sweep",
        type=click.IntRange(3, MOST_POINTS),
        metavar="N",
        help="Predict every input's loss over N weights; write nothing.",
    )
    weights = click.option(
        "--weights", type=Weights(), help="One per input, default equal; auto: the best of a sweep."
    )
    return weights(sweep(command))


def is_swept(weights: Any, sweep: int | None) -> bool:
    """Whether weights are looked for; refuses a sweep beside weights that are given."""
    if sweep is not None and weights not in (None, "auto"):
        given = ",".join(f"{weight:g}" for weight in weights)
        raise click.UsageError(
            f"--sweep {sweep} looks for weights, and --weights {given} gives them: leave one out"
        )
    return weights == "auto" or sweep is not None


def sweep_or_merge(
    merge_at: MethodAt,
    sweep_at: MethodAt,
    options: OutputOptions,
    *,
    weights: Any,
    sweep: int | None,
    is_linear: bool,
    dry_run: bool,
    streams: Streams,
) -> int:
    """Sweep, and where the weights are `auto` merge with the best ones; returns the exit code.

    merge_at, sweep_at: the merge at given weights, as it is made and as it is looked at.
    """
    from mergekit_cl.report.sweep import (
        cost,
        print_sweep,
        print_sweep_plan,
        sweep_document,
        weights_words,
    )
    from mergekit_cl.sweep.result import to_json
    from mergekit_cl.sweep.run import SweepRequest, describe_sweep, run_sweep

    request = SweepRequest(
        sweep_at,
        sweep or POINTS,
        is_linear,
        options.selection,
        options.vocab,
        options.threads,
        options.memory,
    )
    ctx = click.get_current_context()
    if dry_run:
        plan = {"command": ctx.command.name, "sweep": describe_sweep(request)}
        if weights != "auto":
            streams.document(plan)
        if not streams.json:
            print_sweep_plan(plan)
        if weights != "auto":
            return 0
        method = merge_at(None)
        return finish_merge(method, options, dry_run=True, streams=streams, more=plan)
    with streams.progress() as start:
        found = run_sweep(request, start, streams.say)
    best = weights_words(found.best.weights)
    if weights != "auto":
        again = line_again(ctx, {"sweep": None, "weights": best})
        streams.document(sweep_document(ctx.command.name or "", found, again))
        if not streams.json:
            print_sweep(found, sys.stdout, again=again)
        streams.say(cost(found))
        return 0
    if not streams.quiet:
        print_sweep(found, sys.stderr, again=None)
    said = to_json(found)
    method = merge_at(found.best.weights)
    chosen = {"weights_from": "auto", "sweep": said["points"]}
    method = replace(method, options={**method.options, **chosen}, sweep=said)
    return finish_merge(method, options, dry_run=False, streams=streams, more={"sweep": said})
