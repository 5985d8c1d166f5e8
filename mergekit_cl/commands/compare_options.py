"""What `diff` and `check` share: options, and the request they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.options import Command, row_options, stacked
from mergekit_cl.commands.parameters import Size

if TYPE_CHECKING:
    from mergekit_cl.comparing.report import Request


def compare_options(command: Command) -> Command:
    """Options of every comparison."""
    return stacked(
        click.option("--base", metavar="PATH", help="What updates are measured from."),
        row_options("Rows to measure the loss on."),
        click.option(
            "--top",
            type=click.IntRange(0),
            default=10,
            show_default=True,
            help="Layers and tensors to show.",
        ),
        click.option(
            "--html",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write a page to look at.",
        ),
        click.option("--include", multiple=True, metavar="GLOB", help="Only these tensors."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Not these tensors."),
        click.option(
            "--device", default="auto", show_default=True, help="Of the models, with --data."
        ),
        click.option("--memory", type=Size(), help="Bound on all buffers together."),
        click.option("--threads", type=click.IntRange(1), help="Default one per core."),
        click.option("--allow-nonfinite", is_flag=True, help="Compare in spite of NaN, Inf."),
    )(command)


def make_request(
    merged: str, parents: Sequence[str], fishers: Sequence[str], values: dict[str, Any], **more: Any
) -> Request:
    """The library's request from a command's values; more: what only one command has."""
    from mergekit_cl.comparing.measured import Data
    from mergekit_cl.comparing.report import Request
    from mergekit_cl.plan import Selection

    if fishers and len(fishers) != len(parents):
        raise click.UsageError(
            f"{len(parents)} parents need {len(parents)} --fisher, not {len(fishers)}"
        )
    named = [name for name in ("text_field", "label_field") if values[name] is not None]
    if named and not values["data"]:
        raise click.UsageError(f"--{named[0].replace('_', '-')} needs --data")
    data = Data(
        values["data"],
        values["text_field"],
        values["label_field"],
        values["samples"],
        values["max_length"],
    )
    return Request(
        merged=merged,
        parents=tuple(parents),
        fishers=tuple(fishers),
        base=values["base"],
        selection=Selection(values["include"], values["exclude"]),
        data=data if values["data"] else None,
        device=values["device"],
        threads=values["threads"],
        memory=values["memory"],
        allow_nonfinite=values["allow_nonfinite"],
        **more,
    )
