"""The page of a training run: its numbers are those of the run's files, and a browser draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mergekit_cl.report.forgetting import sentences
from mergekit_cl.report.html.run_content import MOST, run_content
from tests.browsers import headless_browser
from tests.commands.running import clmerge
from tests.tiny_models import WORDS, tiny_bert_classifier, tiny_llama
from tests.training_runs import lines_of, write_labelled, write_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.usefixtures("whole_pages")

HOSTILE = "</script><script>alert(1)</script>"
CONFIG = """\
model: base
output: run
task:
  - {name: first, data: [first.jsonl], steps: 70}
  - {name: second, data: [second.jsonl], steps: 30}
  - {name: third, data: [first.jsonl], steps: 10}
optimizer: {learning_rate: 0.02}
batch: {rows: 4}
replay: {rows: 8, ratio: 0.1}
gate: {min_rows: 10, margin: 0.3, every: 35}
drift: {calibration: 60, arl: 60}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second task is rejected, in whose stream the drift detector alarms."""
    place = tmp_path_factory.mktemp("run")
    tiny_llama(place / "base", layers=1, tied=True)
    write_text(place / "first.jsonl", 200, 1, WORDS[:12])
    write_text(place / "second.jsonl", 200, 2, WORDS[30:42])
    (place / "config.yaml").write_text(CONFIG)
    result = clmerge("train", place / "config.yaml")
    assert result.code == 10, result.err
    return place / "run"


@pytest.fixture(scope="module")
def content(run: Path) -> dict[str, Any]:
    return run_content(run, "reject")


def of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(run / "metrics.jsonl") if line["kind"] == kind]


def test_the_matrix_is_that_of_tasks_json(run: Path, content: dict[str, Any]) -> None:
    told = json.loads((run / "tasks.json").read_bytes())["loss"]
    shown = content["scores"]["loss"]
    assert shown["tasks"] == told["tasks"]
    assert shown["rows"] == ["before any", *told["tasks"]]
    for row, entries in zip([told["before"], *told["entries"]], shown["entries"], strict=True):
        assert entries == [[one["value"], one["lower"], one["upper"]] for one in row]
    for name in ("average", "backward_transfer", "forward_transfer", "forgetting"):
        assert shown[name] == [told[name][key] for key in ("value", "lower", "upper")]


def test_the_curves_are_the_evaluations(run: Path, content: dict[str, Any]) -> None:
    curves = content["curves"]["loss"]
    lines = of(run, "evaluation")
    for line, entries in zip(lines, curves["entries"], strict=True):
        for task, (value, lower, upper) in zip(curves["tasks"], entries, strict=True):
            assert value == line["tasks"][task]["loss"]
            assert upper - lower == pytest.approx(
                3.92 * line["tasks"][task]["standard_error"], 1e-3
            )


def test_steps_are_counted_as_they_were_taken(run: Path, content: dict[str, Any]) -> None:
    """The log's own numbers go back where an update is taken back."""
    steps = of(run, "step")
    numbers = [line["step"] for line in steps]
    assert numbers != sorted(numbers)
    assert content["training"]["steps"] == list(range(1, len(steps) + 1))
    assert content["training"]["loss"] == [line["loss"] for line in steps]
    assert [one["task"] for one in content["borders"]] == ["first", "second", "third"]
    assert content["borders"][1]["step"] == 70


def test_the_gate_and_the_alarms_are_there(run: Path, content: dict[str, Any]) -> None:
    looks = of(run, "gate")
    assert len(content["gate"]) == sum(len(line["comparisons"]) for line in looks)
    assert "reject" in {one["decision"] for one in content["gate"]}
    assert len(content["drift"]["alarms"]) == len(of(run, "drift")) > 0
    watched = [line for line in of(run, "step") if "drift_statistic" in line]
    assert content["drift"]["statistic"] == [line["drift_statistic"] for line in watched]
    assert any("the gate took back 1 update: second" in one for one in content["sentences"])


def test_a_long_run_is_thinned(run: Path, tmp_path: Path) -> None:
    for name in ("tasks.json", "config.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    line = of(run, "step")[0]
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for number in range(3 * MOST + 1):
            stream.write(json.dumps({**line, "step": number, "loss": number}) + "\n")
    training = run_content(tmp_path, None)["training"]
    assert len(training["steps"]) <= MOST
    assert training["every"] == 4
    assert training["loss"] == [step - 1 for step in training["steps"]]


def test_forgetting_is_told_by_where_its_interval_lies() -> None:
    def said(value: float, lower: float | None, upper: float | None) -> str:
        lost = {"value": value, "lower": lower, "upper": upper}
        (one,) = sentences({"loss": {"tasks": ["a", "b"], "forgetting_of": [lost]}})
        return one

    assert said(0.3, 0.2, 0.4) == (
        "a was partly forgotten: 0.3 nats per token lost since its best [0.2, 0.4]"
    )
    assert (
        said(-0.3, -0.4, -0.2) == "a gained 0.3 nats per token from what came after it [0.2, 0.4]"
    )
    assert "no clear change" in said(0.1, -0.1, 0.3)
    assert "from a single row" in said(0.1, None, None)
    assert list(sentences({})) == []


# In a browser


def look(browser: Browser, path: Path, width: int = 1200) -> tuple[Page, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
    assert complaints.pop(0) == path.absolute().as_uri()
    return page, complaints


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_browser() as found:
        yield found


def test_it_is_drawn_without_a_complaint_or_a_request(browser: Browser, run: Path) -> None:
    page, complaints = look(browser, run / "report.html")
    for selector in ("#heatmap", "#curves", "#timeline", "#statistic", "#training"):
        assert page.query_selector(f"{selector} .main-svg") is not None, selector
    assert page.inner_text("#decision") == "rejected"
    assert "the gate took back 1 update" in page.inner_text("#sentences")
    page.click("#theme")
    assert complaints == []


def test_what_is_drawn_are_the_numbers(
    browser: Browser, run: Path, content: dict[str, Any]
) -> None:
    page, _ = look(browser, run / "report.html")
    drawn = page.evaluate(
        "document.getElementById('heatmap').data[0].z.map((row) => Array.from(row))"
    )
    wanted = [[one[0] for one in row] for row in content["scores"]["loss"]["entries"]]
    assert np.allclose(drawn, wanted, rtol=1e-5)
    deltas = page.evaluate("document.getElementById('timeline').data.flatMap((one) => one.y)")
    assert sorted(deltas) == pytest.approx(sorted(one["delta"] for one in content["gate"]), 1e-4)
    assert page.locator("#comparisons tr").count() == len(content["gate"]) + 1


def test_the_matrix_is_walked_by_keys_and_read_as_a_table(browser: Browser, run: Path) -> None:
    page, _ = look(browser, run / "report.html")
    page.focus("#heatmap")
    page.keyboard.press("ArrowDown")
    first = page.inner_text("#cell")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#cell") != first
    assert "after before any, first: loss" in first
    page.click("#matrix summary")
    assert page.locator("#entries tr").count() == 5


@pytest.mark.parametrize("width", [360, 3840])
def test_it_fits_a_phone_and_a_wall(browser: Browser, run: Path, width: int) -> None:
    page, complaints = look(browser, run / "report.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []


def test_a_classifiers_page_switches_to_accuracy(browser: Browser, tmp_path: Path) -> None:
    labels = tiny_bert_classifier(tmp_path / "base").config.id2label
    for number, name in enumerate("ab"):
        write_labelled(tmp_path / f"{name}.jsonl", 60, number, list(labels.values())[:2])
    (tmp_path / "c.yaml").write_text(
        "model: base\ntask:\n"
        + "".join(f"- {{name: {n}, data: [{n}.jsonl], steps: 3}}\n" for n in "ab")
    )
    assert clmerge("train", tmp_path / "c.yaml", "-o", tmp_path / "r").code == 0
    page, complaints = look(browser, tmp_path / "r/report.html")
    page.select_option("#score", "accuracy")
    drawn = page.evaluate("document.getElementById('heatmap').data[0].z.flat()")
    told = json.loads((tmp_path / "r/tasks.json").read_bytes())["accuracy"]
    values = [one["value"] for row in (told["before"], *told["entries"]) for one in row]
    assert np.allclose(drawn, values, rtol=1e-5)
    for hidden in ("#gate", "#drift", "#decision"):
        assert not page.is_visible(hidden)
    assert complaints == []


def test_names_of_tasks_and_suites_are_text(browser: Browser, run: Path, tmp_path: Path) -> None:
    from mergekit_cl.report.html.run_page import write_run_page

    for name in ("tasks.json", "config.yaml", "metrics.jsonl"):
        text = (run / name).read_text()
        changed = text.replace('"second"', json.dumps(HOSTILE))
        (tmp_path / name).write_text(changed)
    assert write_run_page(tmp_path, None) is not None
    page, complaints = look(browser, tmp_path / "report.html")
    assert HOSTILE in page.inner_text("#sentences")
    assert complaints == []
    assert page.locator("main script, main b, main img").count() == 0
