"""Rows of a parquet file are those of the same rows in jsonl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.errors import DataError
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.rows import Row
from tests.commands.running import clmerge

pyarrow = pytest.importorskip("pyarrow")
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]


def parquet(path: Path, records: list[dict[str, Any]], **options: Any) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, **options)
    return path


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(*paths: Path, **options: Any) -> list[Row]:
    return list(read_rows(paths, **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as refused:
        rows(path, **options)
    return f"{refused.value.message} {refused.value.detail} {refused.value.hint}"


@pytest.mark.parametrize(
    "records",
    [
        [{"text": "a"}, {"text": "ü\n\U0001f600"}],
        [{"text": "a", "label": 1}, {"text": "b", "label": 0}],
        [{"text": "a", "label": "good"}],
        [{"prompt": "p", "completion": "c"}],
        [{"messages": CHAT}, {"messages": [{**CHAT[0], "name": "me"}, CHAT[1]]}],
    ],
)
def test_parquet_and_json_lines_give_the_same_rows(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = rows(parquet(tmp_path / "a.parquet", records))
    lines = rows(jsonl(tmp_path / "a.jsonl", records))
    assert [(row.id, row.kind, row.content) for row in table] == [
        (row.id, row.kind, row.content) for row in lines
    ]


def test_rows_come_in_order_over_row_groups_and_know_their_number(tmp_path: Path) -> None:
    records = [{"text": str(number)} for number in range(2500)]
    found = rows(parquet(tmp_path / "a.parquet", records, row_group_size=700))
    assert [row.content["text"] for row in found] == [str(number) for number in range(2500)]
    assert found[-1].where == f"{tmp_path / 'a.parquet'}:2500"


def test_categories_are_their_values(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table(
        {"text": ["a", "b"], "label": pyarrow.array(["x", "y"]).dictionary_encode()}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.content["label"] for row in rows(tmp_path / "a.parquet")] == ["x", "y"]


def test_a_folder_is_searched_for_it(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"text": "a"}])
    jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
    assert [row.content["text"] for row in rows(tmp_path)] == ["a", "b"]


def test_what_is_wrong_with_a_table_is_said_with_its_row(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = parquet(tmp_path / "a.parquet", [{"text": "a"}, {"text": None}])
    assert f"{path}:2: it has no fields" in refusal(path)
    path = parquet(tmp_path / "b.parquet", [{"text": 1.5}])
    assert "the field 'text' is not text" in refusal(path)
    path = parquet(tmp_path / "c.parquet", [{"review": "a"}])
    assert "--text-field NAME" in refusal(path)
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no parquet at all")
    assert "the parquet file cannot be read" in refusal(tmp_path / "d.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    assert "two columns have the same name" in refusal(tmp_path / "e.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0).select([0]), tmp_path / "f.parquet")
    assert "a data file holds no rows" in refusal(tmp_path / "f.parquet")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"text": f"row {n}"} for n in range(1000)])
    whole = path.read_bytes()
    for kept in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert "cannot be read" in refusal(path)


def test_without_pyarrow_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'clmerge[parquet]'" in refusal(path)


def test_a_command_takes_it(tmp_path: Path) -> None:
    from tests.tiny_models import TEXTS, tiny_llama, tiny_tokenizer

    tiny_llama(tmp_path / "m")
    tiny_tokenizer(tmp_path / "m")
    lines = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    table = parquet(tmp_path / "a.parquet", [{"text": text} for text in TEXTS])
    for data, name in ((lines, "one"), (table, "two")):
        target = tmp_path / f"{name}.safetensors"
        assert clmerge("fisher", tmp_path / "m", "--data", data, "-o", target).code == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()
