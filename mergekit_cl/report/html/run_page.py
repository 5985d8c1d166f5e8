"""`RUN/report.html`: the page of a training run."""

from __future__ import annotations

from pathlib import Path

from mergekit_cl.output.durable import write_durably
from mergekit_cl.report.html.library import plotting_library
from mergekit_cl.report.html.page import RUN, render_page
from mergekit_cl.report.html.run_content import run_content

NAME = "report.html"


def write_run_page(root: Path, decision: str | None) -> Path | None:
    """Write the page of a run from the files in its folder; None where plotly is not installed."""
    library = plotting_library()
    if library is None:
        return None
    page = root / NAME
    write_durably(page, render_page(run_content(root, decision), library, RUN).encode())
    return page
