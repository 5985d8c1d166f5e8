"""`clmerge lora-extract`."""

from __future__ import annotations

from typing import Any

import click

from mergekit_cl.commands.options import everywhere, output_options
from mergekit_cl.commands.parameters import DType
from mergekit_cl.commands.streams import Streams


@click.command("lora-extract")
@click.argument("tuned", metavar="TUNED")
@click.argument("base", metavar="BASE")
@click.option("--rank", type=click.IntRange(1), help="Of every pair of factors, at most.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="The least rank that keeps this share of each square; default 0.99.",
)
@click.option("--embeddings", is_flag=True, help="Factor embeddings too.")
@click.option("--convolutions", is_flag=True, help="Factor convolutions too, if not in groups.")
@click.option("--save-rest", is_flag=True, help="Keep changed norms and the like whole.")
@click.option("--dtype", type=DType(), default="float32", show_default=True, help="Of factors.")
@output_options("adapter", sharded=False)
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    tuned: str,
    base: str,
    rank: int | None,
    energy: float | None,
    embeddings: bool,
    convolutions: bool,
    save_rest: bool,
    **output: Any,
) -> int:
    """Extract a LoRA adapter out of what a tuned model differs from its base by.

    \b
    clmerge lora-extract TUNED BASE --rank 16
    clmerge lora-extract TUNED BASE --energy 0.99 -o adapter
    """
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.errors import OptionError
    from mergekit_cl.lora.extracting import (
        ExtractRequest,
        check_extract,
        describe_extract,
        run_extract,
    )
    from mergekit_cl.lora.holding import Wanted
    from mergekit_cl.plan import Selection
    from mergekit_cl.report.extract import extract_document, print_extract, print_extract_plan

    if rank is not None and energy is not None:
        raise OptionError("--rank and --energy exclude each other", hint="give one of them")
    request = ExtractRequest(
        open_checkpoint(tuned, headers_only=output["dry_run"]),
        open_checkpoint(base, headers_only=output["dry_run"]),
        output["output"],
        rank,
        0.99 if rank is None and energy is None else energy,
        Wanted(
            Selection(output["include"], output["exclude"]), embeddings, convolutions, save_rest
        ),
        dtype=output["dtype"],
        device=output["device"],
        memory=output["memory"],
        threads=output["threads"],
        force=output["force"],
        restart=output["restart"],
    )
    if output["dry_run"]:
        plan = describe_extract(request, check_extract(request))
        streams.document(plan)
        if not streams.json:
            print_extract_plan(plan)
        return 0
    with streams.progress() as start:
        document = extract_document(run_extract(request, start))
    streams.document(document)
    print_extract(document, streams.say)
    return 0
