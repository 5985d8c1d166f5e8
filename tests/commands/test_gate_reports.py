"""What a gate writes for pipelines, decided from stored losses; names that try to be markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from mergekit_cl.gating.losses import Measured, Model
from mergekit_cl.gating.rowsfile import write_rows
from mergekit_cl.training.loss import RowLosses
from tests.commands.running import Result, clmerge
from tests.pages import quoted, section, table

COUNT = 600
HOSTILE = "a|b`c ::error::[bold]<b>##[error]\x1b[31m"
FILES = ("--junit", "j.xml", "--markdown", "m.md", "--annotations")
DECISIONS = {"good": "accept", "bad": "reject", "noisy": "inconclusive"}


def losses(suite: str, rise: float, noise: float, *, labelled: bool) -> RowLosses:
    draw = np.random.default_rng(len(suite))
    tokens = draw.integers(5, 50, COUNT)
    nats = tokens * (3 + rise + noise * draw.normal(size=COUNT))
    ids = tuple(f"{suite}{k}" for k in range(COUNT))
    right = tuple(bool(k % 3 or rise < 0.1) for k in range(COUNT)) if labelled else None
    return RowLosses(ids, tuple(nats), tuple(tokens.tolist()), right)


def store(*suites: str, labelled: bool = False, path: str = "candidate") -> None:
    """rows.jsonl with suites `good`, `bad`, `noisy`, or others that are like `good`."""
    rises = {"bad": (0.5, 0.1), "noisy": (0.01, 2.0)}
    models = {"candidate": Model(path, "d1"), "reference": Model("release", "d2")}
    found = {
        "candidate": {
            name: losses(name, *rises.get(name, (0.0, 0.05)), labelled=labelled) for name in suites
        },
        "reference": {name: losses(name, 0.0, 0.0, labelled=labelled) for name in suites},
    }
    digests = {name: f"rows of {name}" for name in suites}
    write_rows(Path("rows.jsonl"), Measured(models, digests, found, 512))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decide(*line: str) -> Result:
    return clmerge("gate", "--rows", "rows.jsonl", *line)


def cases() -> dict[str, list[str]]:
    """{suite: what its case holds}."""
    root = ElementTree.parse("j.xml").getroot()
    return {
        case.attrib["name"].split()[0]: [inner.tag for inner in case]
        for case in root.iter("testcase")
    }


def test_every_report_says_what_the_gate_says(place: Path) -> None:
    store(*DECISIONS)
    result = decide(*FILES, "--json")
    assert result.code == 10
    found = {one["suite"]: one["decision"] for one in result.document["comparisons"]}
    assert found == DECISIONS
    assert cases() == {"good": [], "bad": ["failure"], "noisy": ["error"]}
    suite = ElementTree.parse("j.xml").getroot().find("testsuite")
    assert suite is not None
    counts = {key: suite.attrib[key] for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0"}
    text = Path("m.md").read_text()
    assert text.startswith("### clmerge gate: ❌ reject\n")
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line[:3] == "| `"] == list(
        DECISIONS.values()
    )
    kinds = [line.split()[0] for line in result.err.splitlines() if line.startswith("::")]
    assert kinds == ["::error", "::warning"]


def test_an_accepted_candidate_is_a_notice_and_no_failure(place: Path) -> None:
    store("good")
    result = decide(*FILES)
    assert result.code == 0
    assert "::notice title=clmerge gate%3A accept::candidate" in result.err
    assert cases() == {"good": []}
    assert "What to do" not in Path("m.md").read_text()


def test_inconclusive_is_told_with_what_to_do(place: Path) -> None:
    store("noisy")
    result = decide(*FILES)
    assert result.code == 11
    (needed,) = re.findall(r"try: give noisy ([\d,]+) rows", result.out)
    exact = decide("--json").document["comparisons"][0]["rows_needed"]
    assert exact <= int(needed.replace(",", "")) < 1.1 * exact
    assert f"give noisy {needed} rows" in Path("m.md").read_text()


def test_what_a_classifier_gained_and_lost_is_told(place: Path) -> None:
    store("bad", labelled=True)
    changed = decide("--json").document["comparisons"][0]["mcnemar"]
    assert (changed["better"], changed["worse"]) == (0, COUNT // 3)
    assert changed["p_value"] == pytest.approx(2.0 ** (1 - COUNT // 3))
    told = decide().out
    assert "bad against reference: 0 rows are right that were wrong, 200 wrong that were" in told


def test_names_from_files_are_text_in_every_report(place: Path) -> None:
    store(HOSTILE, path=HOSTILE)
    result = decide(*FILES, "--ledger", "l.json")
    assert result.code == 0
    for line in (*result.out.splitlines(), *result.err.splitlines()):
        assert line.isprintable()
        assert not line.lstrip().startswith("::error")
        assert "##[" not in line
    html = MarkdownIt("commonmark").enable("table").render(Path("m.md").read_text())
    assert "<b>" not in html
    row = re.findall(r"<tr>\n(.*?)</tr>", html, flags=re.DOTALL)[1]
    assert row.count("<td") == 9
    ElementTree.parse("j.xml")


def test_huge_losses_keep_the_table_readable(place: Path) -> None:
    store("good")
    text = Path("rows.jsonl").read_text()
    Path("rows.jsonl").write_text(re.sub(r'"candidate": [\d.]+', '"candidate": 1e30', text))
    told = decide().out
    assert "e+" in told
    assert max(map(len, told.splitlines())) < 200


def test_the_document_has_the_documented_keys(place: Path) -> None:
    store("good")
    cell = table(section("commands.md", "JSON on stdout"), "of")["`gate`"]
    found: dict[str, Any] = decide("--json").document
    keys = quoted(re.sub(r"\([^)]*\)", "", cell))
    assert sorted(keys) == sorted(found)
    (comparison,) = re.findall(r"\[\{(.*?)\}\]", cell)
    assert sorted(re.findall(r"\w+", comparison)) == sorted(found["comparisons"][0])
    assert f'"{found["format"]}"' in cell
