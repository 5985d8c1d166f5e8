"""Running text cut into pieces about as long as a model reads at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def passages(lines: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str]]:
    """(line number, text) pieces of at most `size` characters, together all of the text.

    A piece ends at the first blank line (the end of a paragraph) after half its size, so short
    paragraphs are joined; at its size at the latest, between lines where it can and else between
    words. Blank lines between paragraphs count as one. Knows no tokenizer, so that two models
    with different ones see the same rows.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    held = ""
    begin = 0
    blank = False
    for number, line in lines:
        text = line.rstrip()
        if not text:
            blank = True
            continue
        if held and blank and 2 * len(held) >= size:
            yield begin, held
            held = ""
        for piece in _pieces(text, size):
            joint = "\n\n" if blank else "\n"
            if held and len(held) + len(joint) + len(piece) > size:
                yield begin, held
                held = ""
            if not held:
                held, begin = piece, number
            else:
                held += joint + piece
            blank = False
    if held:
        yield begin, held


def _pieces(line: str, size: int) -> Iterator[str]:
    """A line of any length in pieces of at most `size`, cut at spaces where there are any."""
    while len(line) > size:
        cut = line.rfind(" ", 1, size + 1)
        cut = size if cut < 0 else cut
        yield line[:cut].rstrip()
        line = line[cut:].lstrip()
    if line:
        yield line
