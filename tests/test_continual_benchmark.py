"""The benchmark of continual learning, on few rows and from one seed: its shape must hold there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import continual, continual_suites, continual_tables, continual_text
from benchmarks.continual_data import Data, Split, hashed_words, load
from benchmarks.continual_learners import (
    Learner,
    Method,
    Schedule,
    Setting,
    learn,
    permuted_tasks,
    split_tasks,
)
from examples.fetch import FetchError
from examples.rows import write_rows
from mergekit_cl.decide.task_matrix import summarise
from tests.tiny_models import TEXTS, tiny_llama

SHORT = Schedule(steps=60, hidden=64, fisher_rows=100)


@pytest.fixture(scope="module")
def digits() -> Data:
    try:
        return load("mnist-5k")
    except FetchError as error:
        pytest.skip(f"the digits cannot be fetched: {error}")


def average(data: Data, setting: Setting, method: Method) -> float:
    found = learn(split_tasks(data, 2, setting), setting, method, SHORT, 0)
    score = summarise(found, better="higher").average
    assert score is not None
    return score


def test_ewc_keeps_what_naive_training_forgets_where_tasks_are_told(digits: Data) -> None:
    naive = average(digits, "task", Method("naive"))
    for estimator in ("exact", "empirical"):
        assert average(digits, "task", Method("ewc", estimator, 1000.0)) > naive + 0.01


def test_replay_wins_and_ewc_does_not_help_where_classes_must_be_told_apart(digits: Data) -> None:
    ewc = average(digits, "class", Method("ewc", "exact", 1000.0))
    replay = average(digits, "class", Method("replay", replayed=200))
    assert ewc < 0.3 < 0.6 < replay


def test_tasks_of_each_setting_hold_what_the_setting_says(digits: Data) -> None:
    by_setting = {s: split_tasks(digits, 2, s) for s in continual_suites.SPLIT}
    assert [task.outputs for task in by_setting["task"]][2] == (4, 5)
    assert [len(task.outputs) for task in by_setting["class"]] == [2, 4, 6, 8, 10]
    assert {task.outputs for task in by_setting["domain"]} == {(0, 1)}
    for setting, tasks in by_setting.items():
        assert sum(len(task.train.y) for task in tasks) == 4000
        for task in tasks:
            assert set(task.train.y.tolist()) <= set(task.outputs), setting
    # No digit is both learned and tested.
    train = {row.numpy().tobytes() for row in digits.train.x}
    assert not any(row.numpy().tobytes() in train for row in digits.test.x)


def test_permuted_tasks_hold_the_same_values_in_other_places(digits: Data) -> None:
    first, second, third = permuted_tasks(digits, 3)
    assert torch.equal(first.train.x, digits.train.x)
    assert torch.equal(second.train.x.sort(1).values, first.train.x.sort(1).values)
    assert not torch.equal(second.train.x, third.train.x)
    # One order for all rows, learned and tested alike.
    for here in (300, 350, 406):
        (there,) = (second.train.x == first.train.x[:, here : here + 1]).all(0).nonzero()
        assert torch.equal(second.test.x[:, there[0]], first.test.x[:, here])


def test_a_replayed_row_comes_back_with_its_own_class_and_task() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 4
    x = torch.randn(40, 3, generator=generator)
    data = Data("made", Split(x, y), Split(x, y))
    learner = Learner(
        split_tasks(data, 2, "task"), "task", Method("r", replayed=30), SHORT, 0, outputs=4
    )
    learner._remember(0)
    learner._remember(1)
    kept = learner.buffer.rows()
    assert sorted(learner.buffer.describe().classes.values()) == [7, 7, 8, 8]
    inputs, labels, homes = learner._rows(kept)
    for row, label, home in zip(inputs, labels, homes, strict=True):
        (place,) = (x == row).all(1).nonzero()
        assert y[place].item() == label
        assert label.item() // 2 == home


def test_words_are_counted_in_bins_and_posts_have_length_one() -> None:
    one, other = hashed_words("The cat sat. The CAT ran"), hashed_words("cat ran the sat cat the")
    assert torch.equal(one, other)
    assert one.norm().item() == pytest.approx(1)
    assert hashed_words("1 2 3").sum() == 0


def test_a_stopped_run_goes_on_and_its_tables_reach_the_page(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    suite = replace(
        continual_suites.SUITES[0],
        schedule=Schedule(2, hidden=8, fisher_rows=20),
        settings=("task",),
    )
    for module in (continual_suites, continual_tables):
        monkeypatch.setattr(module, "SUITES", (suite,))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{continual_tables.BEGIN}\nold\n{continual_tables.END}\nafter\n")
    monkeypatch.setattr(continual, "write", lambda made: continual_tables.write(made, page=page))
    line = ["--work", str(tmp_path / "work"), "--seeds", "2"]
    assert continual.main([*line, "--only", "mnist/task/naive/*"]) == 0
    assert "2/2 mnist/task/naive/1" in capsys.readouterr().err
    assert continual.main([*line, "--only", "mnist/task/n*", "--list"]) == 0
    assert capsys.readouterr().out.strip() == ""
    assert continual.main([*line, "--only", "mnist/task/EWC, exact*", "--write"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    rows = {row.split(" | ")[0]: row for row in text.splitlines() if row.startswith("| ")}
    assert "±" in rows["| naive"]
    assert "±" in rows["| EWC, exact, lambda 100"]
    assert rows["| joint"] == "| joint | - | - |"


def test_tables_of_suites_that_were_not_run_stay_on_the_page() -> None:
    digits, clothes = continual_suites.SUITES[:2]
    naive = clothes.methods()[0]
    earlier = {continual_suites.Cell(clothes, "task", naive, 0): [[0.25]]}
    shown = continual_tables.tables(earlier)
    later = {continual_suites.Cell(digits, "task", naive, 0): [[0.75]]}
    text = continual_tables.tables(later, f"\n\n{shown}\n\n")
    assert continual_tables.table(clothes, earlier) in text
    assert continual_tables.table(digits, later) in text
    assert text.count("### ") == len(continual_suites.SUITES)
    assert continual_tables.tables(later, f"\n\n{text}\n\n") == text


@pytest.mark.slow
def test_two_texts_are_learned_in_turn_and_the_first_is_measured_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_llama(tmp_path / "base", layers=1)
    for name, word in zip(continual_text.DOMAINS, ("cat", "movie"), strict=True):
        folder = tmp_path / "text" / name
        folder.mkdir(parents=True)
        for part, first in (("train", 0), ("held-out", 20)):
            rows = [
                {"text": f"{TEXTS[k % 8]} {word}" + " one" * k} for k in range(first, first + 20)
            ]
            write_rows(folder / f"{part}.jsonl", rows)
    line = ["--work", str(tmp_path / "work"), "--steps", "2", "--model", str(tmp_path / "base")]
    line += ["--text", str(tmp_path / "text"), "--methods", "naive"]
    assert continual_text.main(line) == 0
    text = capsys.readouterr().out
    rows = [row.strip("| ").split(" | ") for row in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["naive"]
    matrix = json.loads((tmp_path / "work/naive/tasks.json").read_text())["loss"]
    assert float(rows[0][3]) == pytest.approx(matrix["entries"][1][0]["value"], abs=6e-4)
    assert float(rows[0][4].split(" ± ")[0]) == pytest.approx(
        matrix["entries"][1][0]["value"] - matrix["entries"][0][0]["value"], abs=6e-4
    )
    assert continual_text.main(line) == 0
    assert capsys.readouterr().out == text
