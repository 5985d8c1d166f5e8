"""What the page of a training run says, from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from mergekit_cl.report.forgetting import SCORES, sentences

MOST = 2000
"""Steps that are drawn; a longer run is thinned."""

REACH = NormalDist().inv_cdf(0.975)
Line = Mapping[str, Any]
Placed = list[tuple[int, Line]]


def run_content(root: Path, decision: str | None) -> dict[str, Any]:
    """The content for `render_page`, from metrics.jsonl, tasks.json and config.yaml in `root`.

    decision: of the gate, None without one. Steps are counted as they were taken, those of a
    rejected update too; the log's own numbers go back when an update is taken back.
    """
    matrices = _matrices(root / "tasks.json")
    lines = _placed(root / "metrics.jsonl")
    evaluations = [(x, line) for x, line in lines if line["kind"] == "evaluation"]
    return {
        "title": f"training run {root.name}",
        "decision": decision,
        "sentences": [*_told(lines), *sentences(matrices)],
        "scores": {score: _scores(matrix) for score, matrix in matrices.items()},
        "curves": {score: _curves(evaluations, score) for score in matrices},
        "borders": _borders(lines),
        "training": _training(lines),
        "gate": _gate(lines),
        "drift": _drift(lines),
        "config": (root / "config.yaml").read_text(encoding="utf-8").splitlines(),
    }


def _matrices(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_bytes())
    return {score: found[score] for score in SCORES if found.get(score) is not None}


def _placed(path: Path) -> Placed:
    """(steps taken until then, line) of every line."""
    found = []
    taken = 0
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        taken += line["kind"] == "step"
        found.append((taken, line))
    return found


def _told(lines: Placed) -> Iterable[str]:
    """Sentences on what happened besides learning."""
    steps = lines[-1][0] if lines else 0
    tasks = list(dict.fromkeys(line["task"] for _, line in lines))
    yield f"{_count(len(tasks), 'task')} in {_count(steps, 'optimizer step')}: {', '.join(tasks)}"
    for _, line in lines:
        if line["kind"] == "protection":
            yield f"before {line['task']}, {line['share']:.1%} of the Fisher of earlier tasks held"
    if back := [line for _, line in lines if line["kind"] == "rollback"]:
        names = ", ".join(dict.fromkeys(line["task"] for line in back))
        yield f"the gate took back {_count(len(back), 'update')}: {names}"
    shares = [line["replay_share"] for _, line in lines if "replay_share" in line]
    if shares:
        yield f"{shares[-1]:.1%} of the last task's mix was replayed"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _scores(matrix: Mapping[str, Any]) -> dict[str, Any]:
    learned = matrix["tasks"][: len(matrix["entries"])]
    rows = [("before any", matrix["before"]), *zip(learned, matrix["entries"], strict=True)]
    known = [(name, row) for name, row in rows if any(one is not None for one in row)]
    derived = ("average", "backward_transfer", "forward_transfer", "forgetting")
    return {
        "tasks": matrix["tasks"],
        "rows": [name for name, _ in known],
        "entries": [[_interval(one) for one in row] for _, row in known],
        **{name: _interval(matrix[name]) for name in derived},
    }


def _interval(one: Mapping[str, Any] | None) -> list[float | None] | None:
    return None if one is None else [one["value"], one["lower"], one["upper"]]


def _curves(evaluations: Placed, score: str) -> dict[str, Any]:
    """Each task's score wherever it was measured, with 95 % intervals."""
    tasks = list(dict.fromkeys(name for _, line in evaluations for name in line["tasks"]))
    error = "standard_error" if score == "loss" else f"{score}_error"

    def entry(line: Line, task: str) -> list[float | None] | None:
        one = line["tasks"].get(task)
        if one is None or one[score] is None:
            return None
        reach = None if one[error] is None else REACH * one[error]
        ends = [None, None] if reach is None else [one[score] - reach, one[score] + reach]
        return [one[score], *ends]

    return {
        "tasks": tasks,
        "steps": [x for x, _ in evaluations],
        "entries": [[entry(line, task) for task in tasks] for _, line in evaluations],
    }


def _borders(lines: Placed) -> list[dict[str, Any]]:
    """Where each task begins."""
    first: dict[str, int] = {}
    for x, line in lines:
        if line["kind"] == "step":
            first.setdefault(line["task"], x - 1)
    return [{"task": task, "step": x} for task, x in first.items()]


def _training(lines: Placed) -> dict[str, Any]:
    steps = [(x, line) for x, line in lines if line["kind"] == "step"]
    every = max(1, -(-len(steps) // MOST))
    drawn = steps[::every]
    return {
        "every": every,
        "steps": [x for x, _ in drawn],
        "loss": [line["loss"] for _, line in drawn],
        "replay_loss": [line.get("replay_loss") for _, line in drawn],
    }


def _gate(lines: Placed) -> list[dict[str, Any]]:
    """One entry per look, suite and model that was compared with."""
    return [
        {**one, "step": x, "task": line["task"]}
        for x, line in lines
        if line["kind"] == "gate"
        for one in line["comparisons"]
    ]


def _drift(lines: Placed) -> dict[str, Any] | None:
    """The statistic of the steps that have one; None where nothing was watched."""
    watched = [(x, line) for x, line in lines if "drift_statistic" in line]
    alarms = [x for x, line in lines if line["kind"] == "drift"]
    if not watched and not alarms:
        return None
    drawn = _thinned(watched, alarms)
    return {
        "steps": [x for x, _ in drawn],
        "statistic": [line["drift_statistic"] for _, line in drawn],
        "threshold": drawn[-1][1]["drift_threshold"] if drawn else None,
        "alarms": alarms,
    }


def _thinned(watched: Sequence[tuple[int, Line]], alarms: Sequence[int]) -> Placed:
    every = max(1, -(-len(watched) // MOST))
    return [one for k, one in enumerate(watched) if k % every == 0 or one[0] in alarms]
