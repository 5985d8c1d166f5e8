"""Which rows a user's files hold, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.errors import DataError
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.rows import Row, data_digest, row_id


def rows(*paths: Path | str, **options: Any) -> list[Row]:
    return list(read_rows(paths, **options))


def contents(*paths: Path | str, **options: Any) -> list[Any]:
    return [dict(row.content) for row in rows(*paths, **options)]


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refusal(*paths: Path | str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        rows(*paths, **options)
    return caught.value


CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("record", "kind", "content"),
    [
        ({"text": "a", "other": 1}, "text", {"text": "a"}),
        (
            {"prompt": "p", "completion": "c", "text": "t"},
            "completion",
            {"prompt": "p", "completion": "c"},
        ),
        ({"messages": CHAT, "prompt": "p", "id": 3}, "chat", {"messages": CHAT}),
        ({"text": "a", "label": 2}, "labelled", {"text": "a", "label": 2}),
        ({"text": "a", "label": "good"}, "labelled", {"text": "a", "label": "good"}),
    ],
)
def test_the_fields_of_a_line_say_what_kind_of_row_it_is(
    record: Any, kind: str, content: Any, tmp_path: Path
) -> None:
    (row,) = rows(jsonl(tmp_path / "d.jsonl", record))
    assert row.kind == kind
    assert row.content == content
    assert row.where == f"{tmp_path / 'd.jsonl'}:1"


def test_named_fields_replace_the_usual_ones_and_give_the_same_row(tmp_path: Path) -> None:
    usual = jsonl(tmp_path / "a.jsonl", {"text": "t", "label": 1})
    named = jsonl(tmp_path / "b.jsonl", {"text": "x", "messages": CHAT, "review": "t", "stars": 1})
    (a,), (b,) = rows(usual), rows(named, text_field="review", label_field="stars")
    assert a.id == b.id


def test_a_named_text_field_goes_before_a_chat(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"messages": CHAT, "review": "t"})
    assert contents(path, text_field="review") == [{"text": "t"}]


def test_a_table_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_bytes(b'label,text\r\n1,"two\nlines, ""quoted"""\r\n0,b\r\n')
    lines = jsonl(
        tmp_path / "d.jsonl",
        {"text": 'two\nlines, "quoted"', "label": 1},
        {"text": "b", "label": 0},
    )
    assert [row.id for row in rows(table)] == [row.id for row in rows(lines)]
    assert [row.where for row in rows(table)] == [f"{table}:3", f"{table}:4"]


def test_tabs_arrays_blank_lines_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\na,b\t1\n")
    (tmp_path / "b.json").write_text('\n[{"text": "c",\n"label": 1}]')
    (tmp_path / "c.ndjson").write_text('\ufeff{"text": "d", "label": 2}\n\n')
    (tmp_path / "d.json").write_text('{"text": "e", "label": 2}\n{"text": "f", "label": 2}\n')
    assert [row["text"] for row in contents(tmp_path)] == ["a,b", "c", "d", "e", "f"]


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(contents(tmp_path)[0]["text"]) == 200_000


def test_a_directory_means_its_data_files_below_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    jsonl(tmp_path / "sub" / "a.jsonl", {"text": "second"})
    jsonl(tmp_path / "b.jsonl", {"text": "first"})
    jsonl(tmp_path / ".cache" / "c.jsonl", {"text": "hidden"})
    (tmp_path / "README.md").write_text("not data")
    assert contents(tmp_path) == [{"text": "first"}, {"text": "second"}]


def test_a_pattern_means_the_files_it_matches_and_no_file_counts_twice(tmp_path: Path) -> None:
    jsonl(tmp_path / "a1.jsonl", {"text": "1"})
    jsonl(tmp_path / "a2.jsonl", {"text": "2"})
    jsonl(tmp_path / "b.jsonl", {"text": "3"})
    assert contents(f"{tmp_path}/a?.jsonl", tmp_path / "a1.jsonl") == [{"text": "1"}, {"text": "2"}]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    assert contents(jsonl(tmp_path / "a[1].jsonl", {"text": "1"})) == [{"text": "1"}]


def test_ids_do_not_depend_on_the_order_of_fields_or_the_place(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", {"prompt": "p", "completion": "ü"})
    b = tmp_path / "b.jsonl"
    b.write_text('\n{ "completion":"\\u00fc",  "prompt":"p"}\n', encoding="utf-8")
    assert rows(a)[0].id == rows(b)[0].id


def test_an_id_is_the_digest_of_the_canonical_content() -> None:
    from hashlib import blake2b

    expected = blake2b(b'{"label":"1","text":"\\u00fc"}', digest_size=16).hexdigest()
    assert row_id({"text": "ü", "label": 1}) == expected


def test_a_data_digest_names_a_set_of_rows() -> None:
    assert data_digest(["aa", "bb"]) == data_digest(["bb", "aa"])
    assert data_digest(["aa", "bb"]) != data_digest(["aa"])
    assert data_digest(["aa", "bb"]) != data_digest(["aab", "b"])


def test_running_text_becomes_passages(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("one two\n\n\nthree four\n\nfive\n")
    assert contents(path, passage=100) == [{"text": "one two\n\nthree four\n\nfive"}]
    assert [row.where for row in rows(path, passage=10)] == [
        f"{path}:1",
        f"{path}:4",
        f"{path}:6",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", "", "empty"),
        ("d.jsonl", "\n \n", "no rows"),
        ("d.txt", "\n\n", "no rows"),
        ("d.csv", "text,label\n", "no rows"),
        ("d.json", "[]", "no rows"),
        ("d.jsonl", '{"text": "a"}\n{"text": \n', "not JSON"),
        ("d.jsonl", "[" * 100_000, "not JSON"),
        ("d.jsonl", '"text"\n', "not a JSON object"),
        ("d.json", '[{"text": "a"}, 3]', "not a JSON object"),
        ("d.jsonl", '{"text": 3}\n', "not text"),
        ("d.jsonl", '{"text": null}\n', "not text"),
        ("d.jsonl", '{"text": "\\ud800"}\n', "surrogate"),
        ("d.jsonl", '{"text": "a", "label": null}\n', "neither a number nor a name"),
        ("d.jsonl", '{"text": "a", "label": true}\n', "neither a number nor a name"),
        ("d.jsonl", '{"messages": []}\n', "not a list of messages"),
        ("d.jsonl", '{"messages": [{"role": "user"}]}\n', "no role or no content"),
        ("d.jsonl", '{"messages": [{"role": "user", "content": 3}]}\n', "not text"),
        ("d.csv", "text,label\na\n", "number of cells"),
        ("d.csv", 'text\n"open\n', "broken"),
        ("d.csv", "text,text\na,b\n", "name its columns"),
    ],
)
def test_a_broken_file_is_refused_by_name(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    error = refusal(path)
    assert said in error.message
    assert str(path) in (error.detail or "")


def test_a_broken_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n\n{"text" "b"}\n')
    detail = refusal(path).detail or ""
    assert detail.startswith(f"{path}:3: ")
    assert "column 9" in detail


def test_bytes_that_are_not_utf8_are_refused_with_file_line_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"text\nabc\ncaf\xe9\n")
    error = refusal(path)
    assert error.detail == f"{path}: byte 12 on line 3"
    assert "iconv" in (error.hint or "")


def test_a_missing_field_is_refused_with_those_there_are(tmp_path: Path) -> None:
    error = refusal(jsonl(tmp_path / "d.jsonl", {"review": "a", "stars": 2}))
    assert "'review', 'stars'" in (error.detail or "")
    assert "--text-field" in (error.hint or "")
    error = refusal(tmp_path / "d.jsonl", text_field="review", label_field="grade")
    assert "'grade'" in error.message
    assert "--label-field" in (error.hint or "")


def test_a_table_without_a_header_is_refused_with_what_a_header_is(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("I like it,1\nI hate it,0\n")
    error = refusal(path)
    assert "'I like it'" in (error.detail or "")
    assert "first line" in (error.hint or "")


def test_rows_of_different_kinds_are_refused_with_both_places(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    b = jsonl(tmp_path / "b.jsonl", {"messages": CHAT})
    detail = refusal(a, b).detail or ""
    assert f"{a}:1" in detail
    assert f"{b}:1" in detail


def test_paths_are_checked_before_any_row_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows([tmp_path / "missing.jsonl"])
    with pytest.raises(DataError, match="no file matches"):
        read_rows([f"{tmp_path}/*.jsonl"])
    with pytest.raises(DataError, match="no data files"):
        read_rows([tmp_path])
    with pytest.raises(DataError, match="no data was given"):
        read_rows([])
    (tmp_path / "d.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match="not known"):
        read_rows([tmp_path / "d.arrow"])
