"""What goes to stdout and what to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mergekit_cl.report.progress import Start, no_progress, progress_display


class Streams:
    """Results on stdout, everything for people on stderr.

    json: one JSON document on stdout and nothing else. quiet: no progress and no summary.
    silent: nothing at all, since another process of the same run speaks.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.silent = silent
        self.json = json and not silent
        self.quiet = quiet or silent

    def document(self, content: Mapping[str, Any]) -> None:
        """Print the JSON document, if one is wanted."""
        if self.json:
            print(json.dumps(content, sort_keys=True, allow_nan=False))  # noqa: T201

    def say(self, text: str) -> None:
        """Tell people something, unless they want quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, text: str) -> None:
        """Tell people something they must not miss."""
        if not self.silent:
            print(f"warning: {text}", file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def progress(self) -> Iterator[Start]:
        """Gives start(title, total, unit) -> advance(done): a bar, plain lines, or silence."""
        if self.quiet:
            yield no_progress
            return
        with progress_display(sys.stderr) as start:
            yield start
