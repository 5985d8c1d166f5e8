"""Files a comparison writes besides what it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mergekit_cl.comparing.report import Report

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


def report_options(command: Command) -> Command:
    """Options for what a pipeline reads."""
    for option in reversed(
        (
            click.option("--junit", type=FILE, metavar="FILE", help="Write JUnit XML."),
            click.option(
                "--markdown", type=FILE, metavar="FILE", help="Write it as a comment in Markdown."
            ),
            click.option(
                "--annotations/--no-annotations",
                default=None,
                help="Workflow commands on stderr; default where GITHUB_ACTIONS is true.",
            ),
        )
    ):
        command = option(command)
    return command


def annotate(wanted: bool | None, lines: Callable[[], Sequence[str]]) -> None:
    """Print workflow commands on stderr, where GitHub reads them as well: stdout may be JSON.

    wanted: None where GitHub runs this.
    """
    if wanted or (wanted is None and os.environ.get("GITHUB_ACTIONS") == "true"):
        sys.stdout.flush()
        print("\n".join(lines()), file=sys.stderr, flush=True)  # noqa: T201


def check_places(places: dict[str, Path | None]) -> None:
    """Raise OutputError, before anything is computed, where a file could not be written.

    places: by option. Raises OptionError where two options name one file.
    """
    from mergekit_cl.errors import OptionError, OutputError

    taken: dict[Path, str] = {}
    for option, path in places.items():
        if path is None:
            continue
        if (other := taken.setdefault(path.resolve(), option)) != option:
            raise OptionError(f"{other} and {option} name one file", detail=str(path))
        why = None
        if path.is_dir():
            why = "it is a folder"
        elif not path.parent.is_dir():
            why = f"there is no folder {path.parent}"
        elif not os.access(path if path.exists() else path.parent, os.W_OK):
            why = "it may not be written"
        if why is not None:
            raise OutputError("a report cannot be written", detail=f"{option} {path}: {why}")


def write_file(option: str, path: Path, text: str) -> None:
    """Write a text, whole or not at all; raises OutputError naming the option where that fails."""
    from mergekit_cl.errors import OutputError
    from mergekit_cl.output.durable import write_durably

    try:
        if path.exists() and not path.is_file():  # a pipe, a terminal
            path.write_text(text, encoding="utf-8")
        else:
            write_durably(Path(os.path.realpath(path)), text.encode())
    except OSError as error:
        raise OutputError(
            "a report cannot be written", detail=f"{option} {path}: {error.strerror}"
        ) from error


def check_page(path: Path | None) -> None:
    """Raise InputError, before anything is read, where a page is wanted and cannot be drawn."""
    if path is not None:
        from mergekit_cl.report.html.library import needed_library

        needed_library()


def write_page(path: Path | None, report: Report, *, judged: bool) -> None:
    """Write the page of `--html`; judged: with verdict and policy."""
    if path is None:
        return
    from mergekit_cl.report.html.content import comparison_content
    from mergekit_cl.report.html.library import needed_library
    from mergekit_cl.report.html.page import render_page

    content = comparison_content(report, judged=judged)
    write_file("--html", path, render_page(content, needed_library()))
