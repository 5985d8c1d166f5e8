"""Sentences as they come in at a company: film reviews at first, tweets and editorials later.

    python -m examples.recipes.data OUT [--held-out 800]

Writes OUT/{films,tweets,editorials}.jsonl with their -held-out.jsonl, OUT/today.jsonl (tweets that
are in no other file) and OUT/hour-{1..4}.jsonl: two hours of films, then two of tweets.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from examples.fetch import FetchError, fetch
from examples.once import once
from examples.rows import spread, write_rows
from examples.sentiment.snippets import labelled, split_by_label

TODAY = 240
HOUR = 320


def write(parts: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """One file per part."""
    out.mkdir()
    for name, rows in parts.items():
        write_rows(out / f"{name}.jsonl", rows)


def parts_of(source: Path, held_out: int) -> dict[str, list[dict[str, Any]]]:
    """{file: rows}; films are sorted by label, so what is cut off is taken at even distances."""
    found = {}
    for domain in ("films", "tweets", "editorials"):
        train, rest = split_by_label(labelled(source, domain))
        found[domain], found[f"{domain}-held-out"] = train, spread(rest, held_out)
    for name, domain, count in (
        ("today", "tweets", TODAY),
        *((f"hour-{k}", "films" if k < 3 else "tweets", HOUR) for k in range(1, 5)),
    ):
        found[name] = spread(found[domain], count)
        taken = {row["text"] for row in found[name]}
        found[domain] = [row for row in found[domain] if row["text"] not in taken]
    return found


def main() -> None:
    """Write all files."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--held-out", type=int, default=800, help="rows of each kind")
    given = arguments.parse_args()
    try:
        source = fetch("vaderSentiment")
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error
    recipe: dict[str, object] = {"source": source.name, "held-out": given.held_out}
    once(given.out, recipe, partial(write, parts_of(source, given.held_out)))


if __name__ == "__main__":
    main()
