"""Pages with a line in place of plotly, for all tests that are not about pages.

Plotly is 5 MB of every page. To read, write, sync, copy and compare them takes longer than the rest
of a small merge.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from mergekit_cl.report.html import library

_PLOTLY = Path(__file__).parent / "plotly_in_short"


def make_pages_short() -> None:
    """From now on, in this process."""
    found = SimpleNamespace(submodule_search_locations=[str(_PLOTLY)])
    library.find_spec = lambda name: found


def make_pages_whole() -> None:
    """As users get them, from now on."""
    library.find_spec = find_spec
