"""The draw of rows depends on their contents and the seed, and on nothing else."""

from __future__ import annotations

import json
import random
import tempfile
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.training.choose import choose, key
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.rows import Row, make_row

TEXTS = st.lists(st.text(max_size=4), max_size=30)


def made(texts: list[str]) -> list[Row]:
    return [make_row("text", {"text": text}, f"here:{n}") for n, text in enumerate(texts)]


def chosen(texts: list[str], samples: int, seed: int = 0) -> list[str]:
    return [row.content["text"] for row in choose(made(texts), samples, seed).rows]


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_and_repetition_of_rows_do_not_matter(
    texts: list[str], samples: int, seed: int, shuffler: random.Random
) -> None:
    again = texts + texts[: len(texts) // 2]
    shuffler.shuffle(again)
    assert chosen(again, samples, seed) == chosen(texts, samples, seed)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12), st.integers(1, 12))
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(
    texts: list[str], fewer: int, more: int
) -> None:
    fewer, more = sorted((fewer, more))
    assert chosen(texts, more)[:fewer] == chosen(texts, fewer)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12), st.integers(0, 3))
def test_the_draw_is_the_rows_with_the_smallest_keys(
    texts: list[str], samples: int, seed: int
) -> None:
    by_key = sorted({row.id: row for row in made(texts)}.values(), key=lambda r: key(r.id, seed))
    expected = [row.content["text"] for row in by_key[:samples]]
    assert chosen(texts, samples, seed) == expected


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_a_row_left_out_changes_no_other_rows_turn(texts: list[str], samples: int) -> None:
    for gone in set(texts):
        rest = [text for text in texts if text != gone]
        kept = [text for text in chosen(texts, samples) if text != gone]
        assert chosen(rest, samples)[: len(kept)] == kept


@settings(deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=20), st.data())
def test_how_files_split_the_rows_does_not_matter(texts: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts) - 1))
    with tempfile.TemporaryDirectory() as folder:
        parts = {"b": texts[:cut], "a": texts[cut:]} if cut else {"a": texts}
        for name, part in parts.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
            (Path(folder) / f"{name}.jsonl").write_text(lines)
        found = choose(read_rows([folder]), 5, 1)
        assert [row.content["text"] for row in found.rows] == chosen(texts, 5, 1)
        assert found.seen == len(texts)


def test_another_seed_draws_other_rows() -> None:
    texts = [str(n) for n in range(200)]
    assert set(chosen(texts, 20, 0)) != set(chosen(texts, 20, 1))


def test_a_key_is_the_digest_of_seed_and_row() -> None:
    assert key("ab", 3) == blake2b(b"3:ab", digest_size=16).digest()


def test_no_row_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        choose([], 0)
