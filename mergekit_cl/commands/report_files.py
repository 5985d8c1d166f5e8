"""Files a comparison writes besides what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_cl.comparing.report import Report


def write_file(option: str, path: Path, text: str) -> None:
    """Write a text; raises OutputError naming the option where that fails."""
    from mergekit_cl.errors import OutputError

    try:
        path.write_text(text, encoding="utf-8")
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
