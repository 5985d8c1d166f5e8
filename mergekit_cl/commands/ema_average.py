"""`clmerge ema-average`."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.parameters import Size
from mergekit_cl.commands.streams import Streams

PLACE = click.Path(path_type=Path)


@click.command("ema-average")
@click.argument("run", type=PLACE, metavar="RUN")
@click.option(
    "--half-life",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Steps, at the end of the run, that have half of the weight.",
)
@click.option(
    "-o",
    "--output",
    type=PLACE,
    default="averaged",
    show_default=True,
    help="The folder of the model, or of the adapter.",
)
@click.option("--force", is_flag=True, help="Replace an output that clmerge made.")
@click.option("--restart", is_flag=True, help="Discard an unfinished run.")
@click.option("--shard-size", type=Size(), default="5GB", show_default=True, help="Per file.")
@click.option("--threads", type=click.IntRange(1), help="Of the sums; default all cores.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    run: Path,
    half_life: float,
    output: Path,
    force: bool,
    restart: bool,
    shard_size: int,
    threads: int | None,
    dry_run: bool,
) -> int:
    """Average the weights of a training run, with any half-life, after it.

    \b
    clmerge train config.toml --set ema.snapshot_every=100
    clmerge ema-average run --half-life 200 -o averaged

    RUN is the folder of a finished run that kept snapshots. The average is written as the run
    wrote its model or adapter: in the names and dtypes of the file that it began with.
    """
    from mergekit_cl.report.average import average_document, print_average, print_average_plan
    from mergekit_cl.tuning.averaging import (
        AverageRequest,
        describe_average,
        run_average,
        source_of,
    )

    request = AverageRequest(run, half_life, output, shard_size, threads, force, restart)
    with source_of(request, headers_only=dry_run) as source:
        if dry_run:
            plan = describe_average(request, source)
            streams.document(plan)
            if not streams.json:
                print_average_plan(plan)
            return 0
        with streams.progress() as start:
            document = average_document(run_average(request, source, start))
    streams.document(document)
    print_average(document, streams.say)
    return 0
