"""`clmerge lora-extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_cl.commands.options import everywhere
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
@click.option("--save-rest", is_flag=True, help="Keep changed norms and the like whole.")
@click.option(
    "-o",
    "--output",
    default="adapter",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The adapter's folder.",
)
@click.option("--force", is_flag=True, help="Replace an output that clmerge made.")
@click.option("--restart", is_flag=True, help="Discard an unfinished run.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these tensors.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these tensors.")
@click.option("--dry-run", is_flag=True, help="Print the plan from headers; write nothing.")
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
    from mergekit_cl.lora.extracting import ExtractRequest, check_extract, run_extract
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
        embeddings,
        save_rest,
        Selection(output["include"], output["exclude"]),
        output["force"],
        output["restart"],
    )
    if output["dry_run"]:
        found = check_extract(request)
        roles = ("linear", "embedding") if embeddings else ("linear",)
        factored = sum(one.role in roles and one.name in request.selection for one in found)
        plan = {
            "command": "lora-extract",
            "output": str(request.target),
            "factored": factored,
            "others": len(found) - factored,
            "bytes_read": 2 * request.base.nbytes,
        }
        streams.document(plan)
        if not streams.json:
            print_extract_plan(plan)
        return 0
    with streams.progress() as start:
        document = extract_document(run_extract(request, start))
    streams.document(document)
    print_extract(document, streams.say)
    return 0
