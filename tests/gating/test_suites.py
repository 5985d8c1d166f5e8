"""`--data` as typed: suites and their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_cl.errors import OptionError
from mergekit_cl.gating.suites import name_suites, read_suites


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_suite_is_called_as_given_or_after_its_file() -> None:
    given = ["chat=x/a.jsonl", "y/held-out.jsonl", "code=b.jsonl"]
    assert name_suites(given) == {
        "chat": ("x/a.jsonl",),
        "held-out": ("y/held-out.jsonl",),
        "code": ("b.jsonl",),
    }


def test_a_name_given_again_adds_to_its_suite() -> None:
    assert name_suites(["v=a.jsonl", "v=b.jsonl"]) == {"v": ("a.jsonl", "b.jsonl")}


@pytest.mark.parametrize(
    "given",
    [
        ["x/val.jsonl", "y/val.jsonl"],
        ["val=x.jsonl", "y/val.jsonl"],
        ["y/val.jsonl", "val=x.jsonl"],
    ],
)
def test_two_paths_do_not_become_one_suite_by_chance(given: list[str]) -> None:
    with pytest.raises(OptionError, match="two suites are called val"):
        name_suites(given)


def test_a_path_that_gives_no_name_needs_one() -> None:
    with pytest.raises(OptionError, match="needs a name") as refused:
        name_suites(["x/*.jsonl"])
    assert refused.value.hint == "--data NAME=x/*.jsonl"
    assert name_suites(["all=x/*.jsonl"]) == {"all": ("x/*.jsonl",)}


def test_a_file_whose_name_holds_an_equals_sign_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a=b.jsonl"), "x")
    with pytest.raises(OptionError, match="needs a name"):
        name_suites(["a=b.jsonl"])
    assert name_suites(["n=a=b.jsonl"]) == {"n": ("a=b.jsonl",)}


def test_rows_of_a_suite_are_counted_once_and_drawn_by_their_content(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", "x", "y", "x")
    two = write(tmp_path / "b.jsonl", "y", "z")

    def read(samples: int | None) -> list[str]:
        found = read_suites(
            {"s": (str(one), str(two))},
            text_field=None,
            label_field=None,
            samples=samples,
            max_length=9,
        )
        return [row.content["text"] for row in found["s"]]

    assert sorted(read(None)) == ["x", "y", "z"]
    assert read(2) == read(None)[:2]
