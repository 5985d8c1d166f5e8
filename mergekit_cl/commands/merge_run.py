"""What every merge command does once its method is bound: run it, tell what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.merging import OutputOptions
    from mergekit_cl.methods.method import Method

LOSSY = 10


def at_least_two(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse a merge of one."""
    if len(value) < 2:
        raise click.UsageError("a merge needs at least two models", ctx)
    return value


def finish_merge(
    method: Method,
    options: OutputOptions,
    *,
    dry_run: bool,
    streams: Streams,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Run or only plan a merge; returns the exit code. more: what its document says besides."""
    from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path
    from mergekit_cl.merging import describe_plan, make_plan, run_merge
    from mergekit_cl.remote_merge import describe_remote_plan, run_remote_merge
    from mergekit_cl.report.merge import merge_document, print_merge, print_plan

    url = as_typed(options.target)
    here = local_path(url)
    if here is not None:
        options = replace(options, target=here)
    beyond = is_url(url) and here is None
    if dry_run:
        plan = (
            describe_remote_plan(url, method, options)
            if beyond
            else describe_plan(method, make_plan(method, options), options)
        )
        streams.document({**plan, **(more or {})})
        if not streams.json:
            print_plan(plan)
        return 0
    with streams.progress() as start:
        outcome = (
            run_remote_merge(url, method, options, start)
            if beyond
            else run_merge(method, options, start)
        )
    for note in outcome.notes:
        streams.say(f"note: {note}")
    streams.document({**merge_document(outcome), **(more or {})})
    if not streams.quiet:
        print_merge(outcome)
    elif outcome.lossy:
        reasons = outcome.manifest["verdict"]["reasons"]
        streams.warn(f"the merge is lossy: {'; '.join(reasons)}")
    return LOSSY if options.strict and outcome.lossy else 0
