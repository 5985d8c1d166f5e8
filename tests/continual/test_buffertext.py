from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from buffers import Arrival, filled, labelled, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.continual.buffer import Buffer, Policy
from mergekit_cl.continual.buffertext import Texts, decode, encode
from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import FormatError
from mergekit_cl.training.rows import make_row

POLICIES: tuple[Policy, ...] = get_args(Policy)
STREAM: list[Arrival] = [labelled(n, "abc"[n % 3], f"task {n // 40}", n) for n in range(120)]


@given(st.integers(0, 120), st.sampled_from(POLICIES), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_a_resumed_buffer_ends_as_an_uninterrupted_one(
    stop: int, policy: Policy, capacity: int
) -> None:
    resumed = decode(encode(filled(STREAM[:stop], capacity, policy=policy)), "run")
    for arrival in STREAM[stop:]:
        resumed.add(*arrival)
    assert encode(resumed) == encode(filled(STREAM, capacity, policy=policy))


def test_every_kind_of_row_comes_back_as_it_was() -> None:
    rows = [
        make_row("text", {"text": "naïve café \u2028 line\nbreak"}, "a.txt:1"),
        make_row("completion", {"prompt": "p", "completion": "c"}, "b.jsonl:2"),
        make_row("chat", {"messages": [{"role": "user", "content": "hé"}]}, "c.jsonl:3"),
        make_row("labelled", {"text": "t", "label": 3}, "d.csv:4"),
    ]
    buffer = Buffer(10, seed=7)
    for step, row in enumerate(rows):
        buffer.add(row, row.content.get("label"), "tâche", step)
    found = decode(encode(buffer), "run")
    assert found.rows() == buffer.rows()
    assert sorted(kept.row.where for kept in found.rows()) == sorted(row.where for row in rows)
    assert (found.capacity, found.seed, found.policy, found.seen) == (10, 7, "reservoir", 4)


def test_the_manifest_says_what_the_buffer_is() -> None:
    manifest = json.loads(encode(filled(STREAM, 30, seed=5, policy="balanced")).manifest)
    digest = manifest.pop("digest")
    assert manifest == {
        "format": "clmerge.buffer/1",
        "capacity": 30,
        "seed": 5,
        "policy": "balanced",
        "seen": 120,
        "rows": 30,
        "classes": {"a": 10, "b": 10, "c": 10},
    }
    assert digest == bytes_digest(encode(filled(STREAM, 30, seed=5, policy="balanced")).rows)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_rows_that_are_cut_or_changed_anywhere_are_refused(data: st.DataObject) -> None:
    texts = encode(filled(STREAM, 20))
    place = data.draw(st.integers(0, len(texts.rows) - 1))
    cut = data.draw(st.booleans())
    other = bytes([texts.rows[place] ^ 1])
    damaged = texts.rows[:place] if cut else texts.rows[:place] + other + texts.rows[place + 1 :]
    with pytest.raises(FormatError, match="not those that its manifest names"):
        decode(Texts(damaged, texts.manifest), "run")


def edited(change: dict[str, Any], rows: bytes | None = None) -> Texts:
    texts = encode(filled(STREAM, 20))
    fresh = texts.rows if rows is None else rows
    manifest = json.loads(texts.manifest) | {"digest": bytes_digest(fresh)} | change
    return Texts(fresh, json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "clmerge.buffer/9"}, "no manifest of a replay buffer"),
        ({"capacity": 0}, "malformed"),
        ({"seed": "0"}, "malformed"),
        ({"policy": "fifo"}, "malformed"),
        ({"seen": None}, "malformed"),
        ({"rows": 19}, "disagree"),
        ({"classes": {"a": 20}}, "disagree"),
        ({"capacity": 10}, "more rows than its capacity"),
        ({"digest": 0}, "not those"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode(edited(change), "run")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_manifest_that_is_none_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        decode(Texts(b"", content), "run")
    assert "run/buffer.json" in str(caught.value.detail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": {"text": "another"}}, "not what its id names"),
        ({"content": 3}, "not what its id names"),
        ({"step": "1"}, "malformed"),
        ({"kind": "poem"}, "malformed"),
        ({"task": None}, "malformed"),
        ({"label": 4}, "malformed"),
    ],
)
def test_a_line_that_cannot_be_is_refused_with_its_number(
    change: dict[str, Any], message: str
) -> None:
    first, second, *rest = encode(filled(STREAM, 20)).rows.splitlines()
    line = json.dumps(json.loads(second) | change).encode()
    with pytest.raises(FormatError, match=message) as caught:
        decode(edited({}, b"\n".join([first, line, *rest]) + b"\n"), "run")
    assert "run/buffer.jsonl: line 2" in str(caught.value.detail)


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b"[1]", b'"x"'])
def test_a_line_that_is_none_is_refused_with_its_number(line: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        decode(edited({}, line + b"\n"), "run")
    assert "run/buffer.jsonl: line 1" in str(caught.value.detail)


def test_a_validation_row_in_a_stored_buffer_is_refused() -> None:
    buffer = filled([plain(number) for number in range(5)], 10)
    texts = encode(buffer)
    with pytest.raises(FormatError, match="validation row"):
        decode(texts, "run", held_out=[buffer.rows()[0].row.id])
    again = decode(texts, "run", held_out=[plain(77)[0].id])
    assert not again.add(*plain(77))
