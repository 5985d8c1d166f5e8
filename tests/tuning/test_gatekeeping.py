"""An update that the gate rejects leaves nothing behind but the knowledge of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import (
    VOCABULARY,
    config_of,
    files_of,
    lines_of,
    trained,
    write_labelled,
    write_text,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.estimating.identity import digest_of
from mergekit_cl.gating.rowsfile import read_rows_file
from mergekit_cl.gating.run import Rule, decide_measured
from mergekit_cl.report.progress import Advance, Unit

GATE = {"min_rows": 2, "margin": 0.01}
EVERYTHING: dict[str, Any] = {
    "optimizer": {"learning_rate": 0.03},
    "ewc": {"lambda": 1e-6, "samples": 20},
    "replay": {"rows": 20, "ratio": 0.05},
    "ema": {"half_life": 1.0, "publish": False, "snapshot_every": 10},
}


def whole_model(root: Path) -> dict[str, Any]:
    tiny_llama(root / "model")
    half = len(VOCABULARY) // 2
    write_text(root / "a.jsonl", 60, 0, VOCABULARY[:half])
    write_text(root / "b.jsonl", 60, 1, VOCABULARY[half:])
    return {}


def adapter(root: Path) -> dict[str, Any]:
    labels = ("negative", "neutral", "positive")
    tiny_bert_classifier(root / "model", labels=labels)
    write_labelled(root / "a.jsonl", 200, 0, labels)
    write_labelled(root / "b.jsonl", 200, 1, labels[::-1])
    return {"lora": {"rank": 2, "modules_to_save": ["classifier"]}}


def tasks_of(root: Path, names: str) -> dict[str, Path]:
    return {name: root / f"{name}.jsonl" for name in names}


def copying(state: Path, title: str, target: Path) -> Callable[..., Advance]:
    """Progress that copies a run's state when something of this title begins."""

    def start(found: str, total: int, unit: Unit = "bytes") -> Advance:
        if found == title:
            shutil.copytree(state, target)
        return lambda done: None

    return start


@pytest.mark.parametrize(
    ("gate", "decision"), [({"margin": 9.0, "min_rows": 2}, "accept"), ({}, "inconclusive")]
)
def test_a_look_says_what_it_decided_and_by_which_numbers(
    tmp_path: Path, gate: dict[str, Any], decision: str
) -> None:
    whole_model(tmp_path)
    config = config_of(
        tmp_path, tmp_path / "model", tasks_of(tmp_path, "ab"), gate=gate, fisher=False
    )
    _, told = trained(config)
    said = [line for line in told if line.startswith("gate at step ")]
    assert len(said) == 2
    verdict = json.loads(next((tmp_path / "run/verdicts").glob("0001-*.json")).read_text())
    (one,) = verdict["comparisons"]
    low, high = one["interval"]
    assert said[0] == (
        f"gate at step 6: {decision}; a against the reference {one['delta']:+.4f} nats per token, "
        f"bounds {low:+.4f} to {high:+.4f}, margin {one['margin']:g}, power {one['power']:.0%}"
    )


@pytest.mark.parametrize("make", [whole_model, adapter])
def test_a_rejected_update_leaves_the_state_byte_for_byte(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]]
) -> None:
    more = make(tmp_path)
    config = config_of(
        tmp_path,
        tmp_path / "model",
        tasks_of(tmp_path, "ab"),
        gate=GATE,
        steps=25,
        **EVERYTHING,
        **more,
    )
    before = tmp_path / "before"
    outcome, told = trained(config, progress=copying(tmp_path / "run/state", "train b", before))
    assert outcome.decision == "reject"
    assert any(line.startswith("rejected: a loses") for line in told)
    expected, found = (
        {name.partition("/")[2]: content for name, content in files_of(place).items()}
        for place in (before, tmp_path / "run/state")
    )
    kept = ("weights", "optimizer", "average", "tracks", "protection", "buffer")
    compared = [name for name in expected if name.startswith(kept)]
    assert len(compared) == 7
    for name in compared:
        assert found[name] == expected[name], name
    # What is written is what was there before the rejected task.
    alone = config_of(
        tmp_path, tmp_path / "model", tasks_of(tmp_path, "a"), gate=GATE, steps=25,
        output=str(tmp_path / "alone"), **EVERYTHING, **more,
    )  # fmt: skip
    first, _ = trained(alone)
    file = "adapter_model.safetensors" if more else "model.safetensors"
    assert (first.model / file).read_bytes() == (outcome.model / file).read_bytes()
    snapshots = files_of(tmp_path / "run/snapshots")
    assert list(snapshots) == [f"{step:08d}.safetensors" for step in (10, 20, 25)]
    assert snapshots == files_of(tmp_path / "alone/snapshots")
    rows = (outcome.model / "clmerge/buffer.jsonl").read_text()
    assert {json.loads(line)["task"] for line in rows.splitlines()} == {"a"}


def test_a_later_look_takes_back_to_the_last_that_was_accepted(tmp_path: Path) -> None:
    whole_model(tmp_path)
    gate = {**GATE, "every": 2, "margin": 0.3, "suites": {"a": [str(tmp_path / "a.jsonl")]}}
    config = config_of(
        tmp_path, tmp_path / "model", {"b": tmp_path / "b.jsonl"}, gate=gate, steps=60,
        optimizer={"learning_rate": 0.02, "schedule": "constant"},
    )  # fmt: skip
    outcome, _ = trained(config)
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    looks = [line for line in lines if line["kind"] == "gate"]
    assert [line["decision"] for line in looks[-2:]] == ["accept", "reject"]
    assert outcome.decision == "reject"
    (back,) = (line for line in lines if line["kind"] == "rollback")
    assert back["step"] == looks[-2]["step"] > 0
    assert back["rejected"] == looks[-1]["step"] < 60
    # Each look at the same rows spends less of alpha.
    alphas = [line["comparisons"][0]["alpha"] for line in looks]
    assert alphas == [0.05 / (n * (n + 1)) for n in range(1, len(looks) + 1)]


def test_a_decision_can_be_made_again_from_what_is_stored(tmp_path: Path) -> None:
    whole_model(tmp_path)
    tasks = tasks_of(tmp_path, "a")
    trained(config_of(tmp_path, tmp_path / "model", tasks, gate=GATE))
    (verdict,) = (tmp_path / "run/verdicts").glob("*.json")
    said = json.loads(verdict.read_text())
    measured = read_rows_file(verdict.with_suffix(".rows.jsonl"))
    again = decide_measured(measured, Rule(margin=0.01, min_rows=2), 0.0)
    assert again.verdict.decision == said["decision"]
    assert again.verdict.judged[0].comparison.delta == said["comparisons"][0]["delta"]


@pytest.mark.parametrize(("choice", "steps"), [("keep", 6), ("drop", 0)])
def test_what_is_inconclusive_is_kept_or_dropped_as_asked(
    tmp_path: Path, choice: str, steps: int
) -> None:
    whole_model(tmp_path)
    gate = {"inconclusive": choice}  # far fewer rows than the 500 that decide something
    tasks = tasks_of(tmp_path, "a")
    outcome, _ = trained(config_of(tmp_path, tmp_path / "model", tasks, gate=gate))
    assert outcome.decision == "inconclusive"
    (task,) = json.loads(next((tmp_path / "run/state").glob("*/history.json")).read_text())["tasks"]
    assert task["steps"] == steps
    before = (tmp_path / "model/model.safetensors").read_bytes()
    kept = (outcome.model / "model.safetensors").read_bytes() == before
    assert kept == (choice == "drop")


def test_the_anchor_notices_losses_that_add_up(tmp_path: Path) -> None:
    whole_model(tmp_path)
    tasks = tasks_of(tmp_path, "a")
    good, _ = trained(config_of(tmp_path, tmp_path / "model", tasks, steps=60))
    gate = {**GATE, "anchor": str(good.model)}
    worse = config_of(
        tmp_path, tmp_path / "model", tasks, gate=gate, output=str(tmp_path / "second"), steps=2
    )
    outcome, _ = trained(worse)
    verdict = json.loads((outcome.model / "clmerge/verdict.json").read_text())
    by_model = {
        one["against"]: one["decision"] for one in verdict["comparisons"] if one["suite"] == "a"
    }
    assert by_model == {"reference": "accept", "anchor": "reject"}
    with open_checkpoint(good.model) as anchor:  # by which a ledger knows the test again
        assert verdict["digests"]["anchor"] == digest_of(anchor)
