"""`clmerge lora-unmerge`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mergekit_cl.commands.merge_run import finish_merge
from mergekit_cl.commands.options import everywhere, output_options, plain_output
from mergekit_cl.commands.streams import Streams


@click.command("lora-unmerge")
@click.argument("merged", metavar="MERGED")
@click.option("--base", metavar="PATH", help="Where the base is now; default where it was.")
@click.option(
    "--approximate", is_flag=True, help="Subtract the update where tensors have changed since."
)
@output_options("unmerged")
@everywhere
@click.pass_obj
def command(
    streams: Streams, /, merged: str, base: str | None, approximate: bool, **output: Any
) -> int:
    """Take a lora-merge back: the base, bit for bit, proven by digests.

    \b
    clmerge lora-unmerge merged
    clmerge lora-unmerge merged --base models/base -o base-again
    """
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.methods.lora_unmerge import unmerge_method

    method = unmerge_method(
        open_checkpoint(merged, headers_only=output["dry_run"]),
        base=base,
        approximate=approximate,
        headers_only=output["dry_run"],
    )
    options = replace(plain_output(output), report=False, allow_nonfinite=True)
    return finish_merge(method, options, dry_run=output["dry_run"], streams=streams)
