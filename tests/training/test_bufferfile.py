from __future__ import annotations

from pathlib import Path

import pytest
from buffers import filled, labelled

from mergekit_cl.continual.buffertext import encode
from mergekit_cl.errors import FormatError, InputError
from mergekit_cl.training.bufferfile import load_buffer, save_buffer


def test_a_saved_buffer_is_loaded_again(tmp_path: Path) -> None:
    buffer = filled([labelled(number, "ab"[number % 2]) for number in range(50)], 20)
    save_buffer(buffer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["buffer.json", "buffer.jsonl"]
    assert encode(load_buffer(tmp_path)) == encode(buffer)
    held_out = [buffer.rows()[0].row.id]
    with pytest.raises(FormatError, match="validation row"):
        load_buffer(tmp_path, held_out)


@pytest.mark.parametrize("name", ["buffer.json", "buffer.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_buffer(filled([labelled(1, "a")], 20), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError) as caught:
        load_buffer(tmp_path)
    assert str(tmp_path / name) in str(caught.value.detail)


def test_a_pair_of_two_runs_is_refused(tmp_path: Path) -> None:
    save_buffer(filled([labelled(1, "a")], 20), tmp_path)
    older = (tmp_path / "buffer.json").read_bytes()
    save_buffer(filled([labelled(2, "a")], 20), tmp_path)
    (tmp_path / "buffer.json").write_bytes(older)
    with pytest.raises(FormatError, match="not those that its manifest names"):
        load_buffer(tmp_path)
