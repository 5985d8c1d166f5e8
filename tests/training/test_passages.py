"""Running text cut into pieces loses nothing but blank space."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.training.passages import passages

WORDS = st.text("ab ", max_size=12)


def cut(text: str, size: int) -> list[str]:
    return [piece for _, piece in passages(enumerate(text.splitlines(True), 1), size)]


@settings(deadline=None)
@given(st.lists(WORDS, max_size=20), st.integers(1, 20))
def test_pieces_keep_every_letter_in_order_and_the_size(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    pieces = cut(text, size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= size for piece in pieces)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=20), st.integers(12, 30))
def test_no_word_is_cut_that_fits(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    assert " ".join(cut(text, size)).split() == text.split()


def test_short_paragraphs_are_joined_and_longer_pieces_end_with_a_paragraph() -> None:
    text = "one\n\ntwo\n\nthree four\nfive\n\nsix\n"
    assert cut(text, 20) == ["one\n\ntwo\n\nthree four", "five\n\nsix"]
    assert cut(text, 16) == ["one\n\ntwo", "three four\nfive", "six"]


def test_a_paragraph_that_fills_half_a_piece_is_one() -> None:
    assert cut("aaaa bbbb\n\ncc\n", 18) == ["aaaa bbbb", "cc"]
    assert cut("aaaa bbbb\n\ncc\n", 19) == ["aaaa bbbb\n\ncc"]


def test_a_piece_is_placed_at_its_first_line() -> None:
    lines = list(enumerate(["\n", "one\n", "\n", "two\n"], 1))
    assert list(passages(lines, 3)) == [(2, "one"), (4, "two")]


def test_a_long_word_is_cut_where_it_must_be() -> None:
    assert cut("abcdefgh ij", 3) == ["abc", "def", "gh", "ij"]


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(passages([], 0))
