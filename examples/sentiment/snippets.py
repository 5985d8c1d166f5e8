"""Sentences of film reviews and tweets, positive or negative, to train on and held out.

    python -m examples.sentiment.snippets OUT [--held-out 800]

Writes OUT/{films,tweets}/{train,held-out}.jsonl. Twenty people rated each sentence; its label is
the sign of their mean. (Hutto and Gilbert, VADER, ICWSM 2014)
"""

from __future__ import annotations

import argparse
import html
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

from examples.fetch import FetchError, fetch
from examples.once import once
from examples.rows import split, spread, write_rows

ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
Row = dict[str, Any]
FILES = {
    "films": "movieReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}
WRITTEN = ("films", "tweets")


def labelled(package: Path, domain: str) -> list[Row]:
    """Rows `text` and `label` (1 positive, 0 negative); sentences rated exactly 0 are left out."""
    member = f"hutto_ICWSM_2014/{FILES[domain]}_GroundTruth.txt"
    with tarfile.open(package / ARCHIVE) as archive:
        found = archive.extractfile(member)
        assert found is not None, member
        lines = found.read().decode("latin-1").splitlines()
    fields = [line.split("\t", 2) for line in lines]
    return [
        {"text": html.unescape(text).strip(), "label": int(float(rating) > 0)}
        for _, rating, text in fields
        if float(rating) != 0
    ]


def split_by_label(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Three quarters to train on, the rest held out, of each label: the films are sorted by it."""
    parts = [split([row for row in rows if row["label"] == label], 0.75) for label in (0, 1)]
    return [row for train, _ in parts for row in train], [row for _, held in parts for row in held]


def write(train: list[Row], held_out: list[Row], folder: Path) -> None:
    """Both parts as JSON lines."""
    folder.mkdir()
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "held-out.jsonl", held_out)


def main() -> None:
    """Write both domains."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--held-out", type=int, default=800, help="rows of each domain")
    given = arguments.parse_args()
    try:
        source = fetch("vaderSentiment")
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error
    for domain in WRITTEN:
        train, held_out = split_by_label(labelled(source, domain))
        chosen = spread(held_out, given.held_out)
        recipe: dict[str, object] = {"source": source.name, "held-out": given.held_out}
        if once(given.out / domain, recipe, partial(write, train, chosen)):
            positive = sum(row["label"] for row in chosen) / len(chosen)
            print(f"{given.out / domain}: {len(train)} rows to train on, {len(chosen)} held out")
            print(f"  always saying 'positive' is right for {positive:.1%} of these")


if __name__ == "__main__":
    main()
