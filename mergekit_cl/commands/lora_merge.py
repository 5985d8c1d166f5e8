"""`clmerge lora-merge`."""

from __future__ import annotations

from typing import Any, Literal

import click

from mergekit_cl.commands.merge_run import finish_merge
from mergekit_cl.commands.options import everywhere, merge_options, merge_output
from mergekit_cl.commands.parameters import Numbers
from mergekit_cl.commands.streams import Streams


@click.command("lora-merge")
@click.argument("base", metavar="BASE")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--scale", type=Numbers(), help="One per adapter, times its own; default 1.")
@click.option(
    "--undo",
    type=click.Choice(["base", "xor", "none"]),
    default="base",
    show_default=True,
    help="What is kept to get the base back: where it is and its digests, its bits, or nothing.",
)
@click.option("--allow-other-base", is_flag=True, help="Take a base the adapter was not made of.")
@merge_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    base: str,
    adapters: tuple[str, ...],
    scale: tuple[float, ...] | None,
    undo: Literal["base", "xor", "none"],
    allow_other_base: bool,
    **output: Any,
) -> int:
    """Merge LoRA adapters into their base, with one rounding.

    \b
    clmerge lora-merge BASE ADAPTER
    clmerge lora-merge BASE A1 A2 A3 --scale 1,0.5,0.5 -o merged
    """
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.errors import OptionError
    from mergekit_cl.lora.adapter import open_adapter
    from mergekit_cl.methods.lora import lora_method

    if output["vocab"] != "error":
        raise OptionError(
            "an adapter says itself how large the vocabulary is",
            detail=f"--vocab {output['vocab']}",
            hint="leave --vocab out",
        )
    method = lora_method(
        open_checkpoint(base, headers_only=output["dry_run"]),
        [open_adapter(path) for path in adapters],
        scales=scale,
        undo=undo,
        allow_other_base=allow_other_base,
        carry=output["carry"],
    )
    return finish_merge(method, merge_output(output), dry_run=output["dry_run"], streams=streams)
