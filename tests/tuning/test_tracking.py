"""Trackers are told what metrics.jsonl holds, by a count of steps that never falls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_llama
from training_runs import config_of, in_fork, lines_of, steps_of, trained, write_text

from mergekit_cl.errors import OptionError
from mergekit_cl.tuning.engine import Engine
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.tracking import numbers_of


def config(root: Path, **settings: Any) -> Config:
    if not (root / "model").exists():
        tiny_llama(root / "model")
    tasks = {name: write_text(root / f"{name}.jsonl", 60, n) for n, name in enumerate("ab")}
    return config_of(root, root / "model", tasks, steps=3, fisher=False, **settings)


def test_numbers_are_named_by_what_they_are_of() -> None:
    assert numbers_of("step", {"loss": 2.5, "replay_loss": None, "rows": 8}) == {
        "loss": 2.5,
        "rows": 8,
    }
    row = {"rows": 6, "loss": 1.5, "accuracy": None}
    assert numbers_of("evaluation", {"after": "a", "tasks": {"a": row}, "buffer": None}) == {
        "evaluation/tasks/a/rows": 6,
        "evaluation/tasks/a/loss": 1.5,
    }
    one = {"suite": "a", "against": "anchor", "delta": 0.5, "interval": [0.25, 0.75]}
    assert numbers_of("gate", {"last": True, "comparisons": [one]}) == {
        "gate/a/anchor/delta": 0.5,
        "gate/a/anchor/lower": 0.25,
        "gate/a/anchor/upper": 0.75,
    }


@pytest.mark.parametrize("missing", ["run", "writer"])
def test_a_tracker_that_cannot_begin_is_an_error_of_ours_and_is_let_go(missing: str) -> None:
    class Failing:
        name = "wandb"

        def finish(self) -> None:
            getattr(self, missing)

    class Accelerator:
        def __init__(self) -> None:
            self.trackers: list[Failing] = []

        def init_trackers(self, name: str, config: dict[str, str]) -> None:
            self.trackers.append(Failing())
            raise ConnectionError("api key not configured")

    engine = Engine(Accelerator(), tracked=True)
    with pytest.raises(OptionError, match="a tracker cannot begin") as caught:
        engine.begin_tracking({"seed": 0})
    assert "wandb" in str(caught.value.detail)
    assert "api key not configured" in str(caught.value.detail)
    assert engine.accelerator.trackers == []


def test_steps_that_were_taken_twice_are_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(Engine, "track", lambda _, said, count: told.append((count, dict(said))))
    whole = config(tmp_path, save_every=2)

    def dying(title: str, total: int, unit: str = "bytes") -> Any:
        def advance(rows: int) -> None:
            if title == "train b" and rows and len(steps_taken()) == 5:
                os._exit(7)

        return advance

    def steps_taken() -> list[dict[str, Any]]:
        return lines_of(tmp_path / "run/times.jsonl")

    assert in_fork(lambda: trained(whole, progress=dying)) == 7
    before = len(steps_taken())
    assert before == 5
    trained(whole, resume=tmp_path / "run")
    counts = [count for count, said in told if "gradient_norm" in said]
    assert counts == list(range(before + 1, before + len(counts) + 1))
    assert len(counts) > 6 - before  # the step that was lost with the process came again


def test_tensorboard_is_told_the_losses_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained(config(tmp_path, trackers=["tensorboard"], gate={"min_rows": 1}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/clmerge"))
    events.Reload()
    steps = steps_of(tmp_path / "run")
    assert len(steps) == 6
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert told == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in steps]
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    evaluated = [line["tasks"]["a"]["loss"] for line in lines if line["kind"] == "evaluation"]
    held_out = [event.value for event in events.Scalars("evaluation/tasks/a/loss")]
    assert held_out == pytest.approx(evaluated, rel=1e-6)
    assert "gate/a/reference/delta" in events.Tags()["scalars"]
