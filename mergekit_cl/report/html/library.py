"""The JavaScript of plotly, which its Python package holds; nothing of that package is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mergekit_cl.errors import InputError

HINT = "pip install plotly"


def plotting_library() -> str | None:
    """The source of plotly.js, or None where plotly is not installed."""
    found = find_spec("plotly")
    for folder in (found.submodule_search_locations or []) if found else []:
        source = Path(folder) / "package_data" / "plotly.min.js"
        if source.is_file():
            # Browsers hash a script with \n for line ends, and so must the page.
            return source.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return None


def needed_library() -> str:
    """The same where a page was asked for; raises InputError where it cannot be made."""
    source = plotting_library()
    if source is None:
        raise InputError("an HTML report is drawn by plotly, which is not installed", hint=HINT)
    return source
