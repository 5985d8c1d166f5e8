"""One self-contained page: a template, its style and scripts, plotly, and the value it shows.

The page's policy lets run only the scripts whose digests it names and lets nothing be fetched, so
that a name out of a file that found its way around all escapes still could do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mergekit_cl.report.html.content import page_value


@dataclass(frozen=True)
class Page:
    """The parts of a page. words: scripts that run before plotly, so that there is something to
    read while a browser digests its 5 MB; pictures: those that run after it.
    """

    template: str
    words: tuple[str, ...]
    pictures: tuple[str, ...]


DIVERGENCE = Page(
    "page.html",
    ("text.js", "table.js", "words.js"),
    ("heatmap.js", "charts.js", "theme.js", "pictures.js"),
)
RUN = Page(
    "run.html",
    ("text.js", "run_words.js"),
    ("run_charts.js", "run_timelines.js", "theme.js", "run_pictures.js"),
)


def render_page(content: Mapping[str, Any], library: str, page: Page = DIVERGENCE) -> str:
    """The page of a content (content.py, run_content.py); library: the source of plotly.js."""
    value = page_value(content)
    words, pictures = ("\n".join(map(_asset, names)) for names in (page.words, page.pictures))
    parts = {
        "title": html.escape(value["title"]),
        "policy": _policy(words, library, pictures),
        "style": _asset("page.css"),
        "data": embedded(value),
        "words": words,
        "library": library,
        "pictures": pictures,
    }
    pieces = _asset(page.template).split("@@")
    return "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end one or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*scripts: str) -> str:
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    # Plotly sets styles of its own; pictures are what it lets a reader save.
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("mergekit_cl.report.html") / name).read_text(encoding="utf-8")
