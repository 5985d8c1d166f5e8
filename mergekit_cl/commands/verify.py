"""`clmerge verify`."""

from __future__ import annotations

import click

from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.streams import Streams

DIFFERENT = 10


@click.command("verify")
@click.argument("model", metavar="MODEL")
@click.option("--threads", type=click.IntRange(1), help="Default one per core.")
@everywhere
@click.pass_obj
def command(streams: Streams, /, model: str, threads: int | None) -> int:
    """Check every tensor of a checkpoint against its recorded digests.

    \b
    clmerge verify merged
    clmerge verify merged --json

    Exit codes: 0 as recorded, 10 a difference was found, 1 nothing to verify against.
    """
    from mergekit_cl.report.amounts import duration, size
    from mergekit_cl.report.verify import print_verify, verify_document
    from mergekit_cl.verifying import verify

    with streams.progress() as start:
        found = verify(model, start, threads=threads)
    streams.document(verify_document(found))
    if not streams.json:
        print_verify(found)
    streams.say(f"{duration(found.seconds)}, {size(found.nbytes / found.seconds)}/s")
    return DIFFERENT if found.differences else 0
