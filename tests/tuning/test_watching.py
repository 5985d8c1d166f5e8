"""Drift in the loss of new rows: seen before they are learned, whatever the gate says later."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tiny_models import tiny_llama
from training_runs import (
    VOCABULARY,
    config_of,
    dying_after,
    in_fork,
    lines_of,
    steps_of,
    trained,
    write_text,
)

from mergekit_cl.drifting.calibrate import calibrate
from mergekit_cl.drifting.follow import watch_file
from mergekit_cl.drifting.prepare import Request, prepare
from mergekit_cl.drifting.statefile import StateFile, read_state
from mergekit_cl.drifting.watch import Alarm
from mergekit_cl.errors import DriftError, Interrupted, NonFiniteError
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.watching import Stream


def config(root: Path, **settings: Any) -> Config:
    """Three words, then three others; hardly anything is learned, so the loss stays level."""
    if not (root / "model").exists():
        tiny_llama(root / "model")
        write_text(root / "a.jsonl", 100, 0, VOCABULARY[:3])
        write_text(root / "b.jsonl", 100, 1, VOCABULARY[-3:])
    tasks = {name: root / f"{name}.jsonl" for name in "ab"}
    values = {"optimizer": {"learning_rate": 1e-7}, "fisher": False, "steps": 60, **settings}
    return config_of(root, root / "model", tasks, **values)


def test_a_change_of_the_rows_is_an_alarm_and_the_log_has_statistic_and_threshold(
    tmp_path: Path,
) -> None:
    outcome, told = trained(config(tmp_path, drift={"calibration": 50, "arl": 500}))
    alarms = [line for line in lines_of(tmp_path / "run/metrics.jsonl") if line["kind"] == "drift"]
    assert outcome.alarms == len(alarms) > 0
    assert 60 < alarms[0]["step"] < 75
    assert any(line.startswith("drift: ") for line in told)
    steps = steps_of(tmp_path / "run")
    assert all("drift_statistic" not in line for line in steps[:49])
    assert all(line["drift_threshold"] > 0 for line in steps[50:])
    # What is left beside the model goes on from here.
    state = json.loads((outcome.model / "clmerge/drift.json").read_text())
    assert state["rows"] == 70


def test_the_log_has_the_statistic_of_adwin_too(tmp_path: Path) -> None:
    trained(config(tmp_path, drift={"calibration": 50, "arl": 500, "detector": "adwin"}))
    steps = steps_of(tmp_path / "run")
    alarmed = [x["step"] for x in lines_of(tmp_path / "run/metrics.jsonl") if x["kind"] == "drift"]
    assert all("drift_statistic" in line for line in steps[49 : alarmed[0] - 1])
    ahead, late = (steps[at]["drift_statistic"] for at in (55, alarmed[0] - 2))
    assert late > ahead


def test_the_losses_watched_are_those_before_the_step(tmp_path: Path) -> None:
    trained(config(tmp_path, drift={"calibration": 50, "arl": 500}))
    losses = [line["loss"] for line in steps_of(tmp_path / "run")]
    watch = calibrate(losses[:50], 500)
    alarms = [n for n, loss in enumerate(losses[50:], 51) if watch.update(loss) is not None]
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "drift"] == alarms


def test_a_run_that_is_to_stop_stops_with_exit_code_12_and_goes_on_when_resumed(
    tmp_path: Path,
) -> None:
    stopping = config(tmp_path, drift={"calibration": 50, "arl": 500, "stop": True})
    with pytest.raises(DriftError) as stopped:
        trained(stopping)
    assert stopped.value.exit_code == 12
    assert "--resume" in str(stopped.value.hint)
    for _ in range(5):
        try:
            outcome, _ = trained(stopping, resume=tmp_path / "run")
            break
        except DriftError:
            continue
    assert outcome.state == "finished"
    assert len(steps_of(tmp_path / "run")) == 120


def alarms_at(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """The detector calls an alarm at this row, whatever it sees."""
    see = Stream.see

    def seen(self: Stream, loss: float) -> Alarm | None:
        see(self, loss)
        now = len(self.pending)
        return Alarm(now, loss, "up", 9.0, 8.0, now) if now == row else None

    monkeypatch.setattr(Stream, "see", seen)


@pytest.mark.parametrize(("rate", "decision"), [(1e-7, "accept"), (0.03, "reject")])
def test_an_alarm_at_the_last_step_does_not_spare_it_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, decision: str
) -> None:
    alarms_at(monkeypatch, 50)
    stopping = config(
        tmp_path, steps=25, optimizer={"learning_rate": rate}, drift={"stop": True},
        gate={"min_rows": 2},
    )  # fmt: skip
    with pytest.raises(DriftError, match=r"drift\.stop"):
        trained(stopping)
    kinds = [line["kind"] for line in lines_of(tmp_path / "run/metrics.jsonl")]
    assert kinds.count("gate") == 2
    outcome, _ = trained(stopping, resume=tmp_path / "run")
    assert outcome.decision == decision
    looks = [line for line in lines_of(tmp_path / "run/metrics.jsonl") if line["kind"] == "gate"]
    assert [line["decision"] for line in looks] == ["accept", decision]


def test_a_run_begins_with_the_detector_that_drift_calibrate_wrote(tmp_path: Path) -> None:
    random = Random(0)
    stable = [json.dumps({"loss": 5.5 + random.gauss(0, 0.1)}) for _ in range(100)]
    (tmp_path / "stable.jsonl").write_text("\n".join(stable) + "\n")
    prepare(
        Request(
            str(tmp_path / "stable.jsonl"), 100, "cusum", None, None, tmp_path / "drift.json", False
        )
    )
    known = read_state(tmp_path / "drift.json").watch
    given = {"state": str(tmp_path / "drift.json")}
    outcome, _ = trained(config(tmp_path, steps=3, drift=given))
    steps = steps_of(tmp_path / "run")
    assert [line["drift_threshold"] for line in steps] == [known.calibration.threshold] * 6
    left = read_state(outcome.model / "clmerge/drift.json").watch
    for line in steps:
        known.update(line["loss"])
    assert left == known


def test_drift_watch_goes_on_with_the_detector_that_a_run_left(tmp_path: Path) -> None:
    outcome, _ = trained(config(tmp_path, steps=30, drift={"calibration": 50, "arl": 50}))
    kept = StateFile(outcome.model / "clmerge/drift.json")
    before = kept.state.watch.rows
    metrics = tmp_path / "new.jsonl"
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in steps_of(tmp_path / "run")[:4]))
    seen = watch_file(metrics, kept, None, lambda *_: None, every_alarm=True)
    assert (seen.rows, seen.column) == (4, "loss")
    assert read_state(outcome.model / "clmerge/drift.json").watch.rows == before + 4


def test_a_step_that_replays_all_of_its_rows_tells_the_detector_nothing(tmp_path: Path) -> None:
    alone = config(
        tmp_path, steps=60, batch={"rows": 1}, replay={}, drift={"calibration": 50, "arl": 50}
    )
    outcome, _ = trained(alone)
    steps = steps_of(tmp_path / "run")
    empty = [line["step"] for line in steps if line["loss"] is None]
    assert empty == list(range(64, 121, 4))
    watched = read_state(outcome.model / "clmerge/drift.json").watch
    assert watched.calibration.rows + watched.rows == 120 - len(empty)


def test_a_step_of_replayed_rows_alone_that_diverges_says_so(tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "schedule": "constant", "clip": 0.0}
    alone = config(tmp_path, steps=4, batch={"rows": 1}, replay={"ratio": 0.9})
    trained(alone)
    buffer = str(tmp_path / "run/model/clmerge")
    begun = config(
        tmp_path,
        steps=4,
        batch={"rows": 1},
        replay={"ratio": 0.9, "buffer": buffer},
        optimizer=wild,
        output=str(tmp_path / "wild"),
    )
    with pytest.raises(NonFiniteError, match="no longer a number"):
        trained(begun)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_says_what_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    whole = config(tmp_path, steps=6, drift={"calibration": 50}, save_every=1000)

    def run() -> None:
        with pytest.raises(Interrupted) as stopped:
            trained(whole, progress=dying_after(8, number))
        assert stopped.value.exit_code == code
        assert str(stopped.value.hint).endswith(f"--resume {tmp_path / 'run'}")

    assert in_fork(run) == 0
    before = len(steps_of(tmp_path / "run"))
    assert 0 < before < 12
    trained(whole, resume=tmp_path / "run")
    assert [line["step"] for line in steps_of(tmp_path / "run")] == list(range(1, 13))
