"""`clmerge inspect`."""

from __future__ import annotations

import click

from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.streams import Streams


@click.command("inspect")
@click.argument("path", metavar="PATH")
@click.option("--tensors", is_flag=True, help="List every tensor: name, dtype, shape, file.")
@everywhere
@click.pass_obj
def command(streams: Streams, /, path: str, tensors: bool) -> int:
    """Tell what a checkpoint, adapter, sidecar or manifest is, from headers.

    \b
    clmerge inspect merged
    clmerge inspect merged/clmerge/fisher.safetensors --json
    """
    from mergekit_cl.inspecting import inspect_path
    from mergekit_cl.report.inspect import print_inspection

    found = inspect_path(path)
    streams.document(found)
    if not streams.json:
        print_inspection(found, tensors=tensors)
    return 0
