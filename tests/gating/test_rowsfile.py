"""Per-row losses in a file: the same numbers back, and nothing that is not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergekit_cl.errors import FormatError, InputError
from mergekit_cl.gating.gate import judge
from mergekit_cl.gating.losses import Measured, Model
from mergekit_cl.gating.rowsfile import FORMAT, read_rows_file, write_rows
from mergekit_cl.training.loss import RowLosses


def measured(*, labelled: bool = False, count: int = 5) -> Measured:
    def losses(suite: str, seed: int) -> RowLosses:
        draw = np.random.default_rng(seed)
        nats = tuple(draw.normal(3, 1, count).tolist())
        right = tuple(bool(one) for one in draw.integers(0, 2, count)) if labelled else None
        return RowLosses(tuple(f"{suite}{k}" for k in range(count)), nats, (2,) * count, right)

    models = {role: Model(f"path/{role}", role * 2) for role in ("candidate", "reference")}
    suites = {"a": "d1", "b": "d2"}
    return Measured(
        models,
        suites,
        {role: {name: losses(name, k) for name in suites} for k, role in enumerate(models)},
        512,
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_stored_losses_come_back_to_the_bit(tmp_path: Path, labelled: bool) -> None:
    before = measured(labelled=labelled)
    write_rows(tmp_path / "x.jsonl", before)
    after = read_rows_file(tmp_path / "x.jsonl")
    assert (after.models, after.suites, after.max_length) == (before.models, before.suites, 512)
    for role, suites in before.losses.items():
        for name, one in suites.items():
            found = after.losses[role][name]
            assert found.ids == one.ids
            assert list(found.nats) == list(one.nats)
            assert list(found.tokens) == list(one.tokens)
            assert (found.correct is None) is (one.correct is None)
            if found.correct is not None and one.correct is not None:
                assert list(found.correct) == list(one.correct)
    verdicts = [
        judge(one.losses["candidate"], {"reference": one.losses["reference"]}, draws=50)
        for one in (before, after)
    ]
    assert verdicts[0] == verdicts[1]


def edited(tmp_path: Path, number: int, **values: Any) -> Path:
    path = tmp_path / "x.jsonl"
    write_rows(path, measured())
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("number", "values", "says"),
    [
        (0, {"format": "x"}, f"line 1: no file of per-row losses ({FORMAT})"),
        (0, {"models": {}}, "no candidate and reference"),
        (0, {"suites": {"a": {"digest": "d"}}}, "lacks 'rows'"),
        (0, {"max_length": None}, "line 1: its first line lacks"),
        (2, {"suite": "z"}, "line 3: a row of suite 'z'"),
        (2, {"nats": {"candidate": 1.0}}, "line 3: a row needs nats of every model"),
        (2, {"nats": {"candidate": 1.0, "reference": "x"}}, "line 3: nats are numbers"),
        (2, {"nats": {"candidate": 1.0, "reference": float("nan")}}, "line 3: NaN as a loss"),
        (2, {"tokens": 0}, "line 3: a row needs an id and tokens above 0"),
        (2, {"correct": {"candidate": True}}, "`correct` is known of some models only"),
    ],
)
def test_what_was_edited_is_refused_by_its_line(
    tmp_path: Path, number: int, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(FormatError, match="--write-rows") as refused:
        read_rows_file(edited(tmp_path, number, **values))
    assert says in str(refused.value.detail)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, 1)
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:-1]))
    with pytest.raises(FormatError) as refused:
        read_rows_file(path)
    assert "suite b has 4 rows of 5" in str(refused.value.detail)
    path.write_text("\n".join(whole)[:-3])
    with pytest.raises(FormatError):
        read_rows_file(path)
    path.write_text("")
    with pytest.raises(FormatError):
        read_rows_file(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_rows_file(tmp_path / "none.jsonl")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="no text"):
        read_rows_file(path)
