"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mergekit_cl.commands.parameters import DType, Size

if TYPE_CHECKING:
    from mergekit_cl.merging import OutputOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def everywhere(command: Command) -> Command:
    """Flags that are taken off the line before click sees it; declared for the help page."""
    for names, text in (
        (("--debug",), "Show where an error comes from."),
        (("-q", "--quiet"), "No progress, no summary."),
        (("--json",), "One JSON document on stdout, errors included."),
    ):
        command = click.option(*names, is_flag=True, expose_value=False, help=text)(command)
    return command


def output_options(default: str | None, *, sharded: bool = True) -> Callable[[Command], Command]:
    """Options of every command that writes; `sharded`: into as many weight files as it takes."""
    kept = click.option(
        "-o",
        "--output",
        default=default,
        show_default=default is not None,
        type=click.Path(path_type=Path),
        help="Where the result goes; x.safetensors writes one file.",
    )
    size = click.option(
        "--shard-size", type=Size(), default="5GB", show_default=True, help="Per weight file."
    )
    return stacked(
        kept,
        click.option("--force", is_flag=True, help="Replace an output that clmerge made."),
        click.option("--restart", is_flag=True, help="Discard an unfinished run."),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N."
        ),
        *([size] if sharded else []),
        click.option("--memory", type=Size(), help="Bound on all buffers together."),
        click.option("--threads", type=click.IntRange(1), help="Workers; default one per core."),
        click.option("--include", multiple=True, metavar="GLOB", help="Only these tensors."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Not these tensors."),
        click.option("--dry-run", is_flag=True, help="Print the plan; write nothing."),
    )


def row_options(data: str) -> Callable[[Command], Command]:
    """Rows of text and how many of them; data: what `--data` is for."""
    return stacked(
        click.option("--data", multiple=True, metavar="PATH", help=data),
        click.option("--text-field", metavar="NAME", help="Of the text, where not `text`."),
        click.option("--label-field", metavar="NAME", help="Of the label, where not `label`."),
        click.option(
            "--samples", type=click.IntRange(1), default=256, show_default=True, help="Rows."
        ),
        click.option(
            "--max-length",
            type=click.IntRange(1),
            default=512,
            show_default=True,
            help="Tokens per row.",
        ),
    )


def merge_options(command: Command) -> Command:
    """Options of every merge into a new place."""
    return stacked(
        output_options("merged"),
        _merging_options,
        click.option("--carry", is_flag=True, help="Keep what rounding to 16 bits takes."),
    )(command)


def update_options(command: Command) -> Command:
    """Options of a merge that carries a state on."""
    return stacked(
        output_options(None),
        _merging_options,
        click.option(
            "--carry/--no-carry", default=True, help="Keep what rounding to 16 bits takes: on."
        ),
    )(command)


def _merging_options(command: Command) -> Command:
    return stacked(
        click.option("--dtype", type=DType(), help="Default: the inputs', promoted where unequal."),
        click.option("--copy", multiple=True, metavar="GLOB", help="Copy these from the first."),
        click.option(
            "--vocab",
            type=click.Choice(["error", "common", "base"]),
            default="error",
            show_default=True,
            help="Vocabularies of different sizes: refuse, cut to the rows all have, or keep the "
            "first's.",
        ),
        click.option("--no-report", is_flag=True, help="Do not measure divergence."),
        click.option(
            "--policy",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="What counts as lossy.",
        ),
        click.option("--strict", is_flag=True, help="A lossy merge is not published: exit 10."),
        click.option("--publish-anyway", is_flag=True, help="Publish it all the same; still 10."),
        click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through."),
    )(command)


def plain_output(values: dict[str, Any], copied: tuple[str, ...] = ()) -> OutputOptions:
    """The library's output options from those of every command that writes a checkpoint."""
    from mergekit_cl.merging import OutputOptions
    from mergekit_cl.plan import Selection

    return OutputOptions(
        target=values["output"],
        force=values["force"],
        restart=values["restart"],
        device=values["device"],
        shard_size=values["shard_size"],
        memory=values["memory"],
        threads=values["threads"],
        selection=Selection(values["include"], (*values["exclude"], *copied)),
    )


def merge_output(values: dict[str, Any]) -> OutputOptions:
    """The same from a merge command's values."""
    from mergekit_cl.decide.policy import DEFAULT
    from mergekit_cl.policyfile import read_policy

    return replace(
        plain_output(values, values["copy"]),
        dtype=values["dtype"],
        report=not values["no_report"],
        strict=values["strict"],
        publish_anyway=values["publish_anyway"],
        allow_nonfinite=values["allow_nonfinite"],
        allow_stale=values.get("allow_stale_fisher", False),
        carry=values["carry"],
        in_place=values.get("in_place", False),
        vocab=values["vocab"],
        policy=DEFAULT if values["policy"] is None else read_policy(values["policy"]),
    )


def stacked(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator of several, in the order in which help lists them."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
