"""A run that is killed and resumed is the run that was not, to the bit."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tiny_models import tiny_bert_classifier, tiny_gpt2
from training_runs import (
    config_of,
    dying_after,
    dying_at,
    files_of,
    in_fork,
    trained,
    write_labelled,
    write_text,
)

from mergekit_cl.drifting.calibrate import calibrate
from mergekit_cl.drifting.statefile import State
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.tuning.schema import Config

EVERYTHING: dict[str, Any] = {
    "save_every": 3,
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "warmup": 2},
    "replay": {"rows": 20, "ratio": 0.3},
    "ema": {"half_life": 3.0, "snapshot_every": 2},
}
# Seconds, and the folder's own name.
DIFFER = ("manifest.json", "run.json", "times.jsonl", "config.yaml", "report.html", "lock")


def whole_model(root: Path, output: str) -> Any:
    """GPT-2, whose dropout is on."""
    if not (root / "model").exists():
        tiny_gpt2(root / "model")
        for number, name in enumerate("ab"):
            write_text(root / f"{name}.jsonl", 60, number)
    tasks = {name: root / f"{name}.jsonl" for name in "ab"}
    return config_of(root, root / "model", tasks, **EVERYTHING, output=str(root / output))


def adapter(root: Path, output: str) -> Any:
    """A classifier's adapter with its head saved whole, dropout in both."""
    labels = ("negative", "neutral", "positive")
    if not (root / "model").exists():
        tiny_bert_classifier(root / "model", labels=labels)
        for number, name in enumerate("ab"):
            write_labelled(root / f"{name}.jsonl", 60, number, labels)
    tasks = {name: root / f"{name}.jsonl" for name in "ab"}
    lora = {"rank": 2, "dropout": 0.2, "modules_to_save": ["classifier"]}
    return config_of(
        root, root / "model", tasks, **EVERYTHING, lora=lora, output=str(root / output)
    )


@pytest.mark.parametrize("make", [whole_model, adapter])
def test_killed_at_any_step_and_resumed_it_is_the_same_run_to_the_bit(
    tmp_path: Path, make: Any
) -> None:
    whole = make(tmp_path, "whole")
    assert in_fork(lambda: trained(whole)) == 0
    expected = files_of(tmp_path / "whole", but=DIFFER)
    broken = make(tmp_path, "broken")
    random = Random(0)
    for _ in range(3):
        resume = tmp_path / "broken" if (tmp_path / "broken").exists() else None
        how = {"progress": dying_after(random.randrange(2, 12)), "resume": resume}
        assert in_fork(lambda how=how: trained(broken, **how)) == -signal.SIGKILL  # type: ignore[misc]
    assert in_fork(lambda: trained(broken, resume=tmp_path / "broken")) == 0
    found = files_of(tmp_path / "broken", but=DIFFER)
    assert {name.split("/")[-1] for name in found} == {name.split("/")[-1] for name in expected}
    by_name = {name.split("/")[-1]: content for name, content in found.items()}
    for name, content in expected.items():
        assert by_name[name.split("/")[-1]] == content, name


def test_another_config_is_refused_and_its_keys_are_named(tmp_path: Path) -> None:
    config = whole_model(tmp_path, "run")
    assert in_fork(lambda: trained(config, progress=dying_after(5))) == -signal.SIGKILL
    other = whole_model(tmp_path, "run").model_copy(update={"seed": 3})
    with pytest.raises(OptionError) as refused:
        trained(other, resume=tmp_path / "run")
    assert "seed" in str(refused.value.detail)


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run, state = tmp_path / "run", tmp_path / "drift.json"
    held = write_text(tmp_path / "held.jsonl", 10, 7)
    guard = guarded(tmp_path)
    assert guard.gate is not None
    gate = guard.gate.model_copy(update={"suites": {"held": [str(held)]}})
    config = guard.model_copy(update={"gate": gate})
    how: dict[str, Any] = {"progress": dying_at("evaluate")}
    assert in_fork(lambda: trained(config, **how)) == -signal.SIGKILL
    before = state.read_text()
    state.write_text(json.dumps({**json.loads(before), "rows": 1}))
    with pytest.raises(MismatchError, match="changed since the run began") as refused:
        trained(config, resume=run)
    assert "drift.state" in str(refused.value.detail)
    state.write_text(before)
    how = {"progress": dying_at("fisher of a"), "resume": run}
    assert in_fork(lambda: trained(config, **how)) == -signal.SIGKILL
    state.write_text(json.dumps({**json.loads(before), "rows": 1}))  # by now the run has its own
    write_text(held, 10, 8)
    with pytest.raises(MismatchError, match="changed since the run began") as refused:
        trained(config, resume=run)
    assert "gate.suites.held" in str(refused.value.detail)
    write_text(held, 10, 7)
    assert trained(config, resume=run)[0].state == "finished"


def guarded(root: Path) -> Any:
    """GPT-2 with EWC, a gate that looks every other step, and a drift detector on its way."""
    if not (root / "drift.json").exists():
        watch = calibrate([4.0 + 0.1 * math.sin(n * n) for n in range(100)], 500)
        (root / "drift.json").write_text(json.dumps(State(watch, "loss").to_json()))
    guards = {
        "ewc": {"lambda": 10.0, "samples": 20},
        "gate": {"every": 2, "min_rows": 2, "margin": 0.3},
        "drift": {"state": str(root / "drift.json")},
    }
    whole = whole_model(root, "run").model_dump(mode="json", by_alias=True)
    return Config.model_validate({**whole, **guards})


def test_with_ewc_gate_and_drift_it_is_the_same_run_to_the_bit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = guarded(tmp_path)
    assert in_fork(lambda: trained(config)) == 0
    run.rename(tmp_path / "whole")  # verdicts name the folder
    deaths = [dying_at("gate", 3), dying_at("fisher of a"), dying_after(9), dying_at("gate", 2)]
    for progress in deaths:
        how = {"progress": progress, "resume": run if run.exists() else None}
        assert in_fork(lambda how=how: trained(config, **how)) == -signal.SIGKILL  # type: ignore[misc]
    assert in_fork(lambda: trained(config, resume=run)) == 0
    expected, found = (
        {name.split("/")[-1]: content for name, content in files_of(place, but=DIFFER).items()}
        for place in (tmp_path / "whole", run)
    )
    assert {"protection.safetensors", "drift.json", "history.json"} < expected.keys()
    assert sum(name.endswith(".rows.jsonl") for name in expected) == 6
    assert found == expected


@pytest.mark.parametrize("last_work", ["fisher of a", "evaluate"])
def test_what_the_gate_decided_at_the_last_step_is_known_after_it(
    tmp_path: Path, last_work: str
) -> None:
    whole_model(tmp_path, "run")
    config = config_of(
        tmp_path, tmp_path / "model", {"a": tmp_path / "a.jsonl"},
        gate={}, ewc={"lambda": 1.0, "samples": 5}, save_every=6,
    )  # fmt: skip
    dies = dying_at(last_work, 2 if last_work == "evaluate" else 1)
    assert in_fork(lambda: trained(config, progress=dies)) == -signal.SIGKILL
    outcome, _ = trained(config, resume=tmp_path / "run")
    assert outcome.decision == "inconclusive"
    assert json.loads((tmp_path / "run/run.json").read_text())["decision"] == "inconclusive"
    assert len(list((tmp_path / "run/verdicts").glob("*.json"))) == 1


@pytest.mark.slow
def test_killed_at_any_instant_also_while_it_writes_it_is_the_same_run(tmp_path: Path) -> None:
    often = {"save_every": 1}
    whole = whole_model(tmp_path, "whole").model_copy(update=often)
    assert in_fork(lambda: trained(whole)) == 0
    expected = files_of(tmp_path / "whole", but=DIFFER)
    broken = whole.model_copy(update={"output": str(tmp_path / "broken")})
    random = Random(1)
    died = 0
    for _ in range(40):
        resume = tmp_path / "broken" if (tmp_path / "broken/run.json").exists() else None
        how = {"resume": resume}
        code = in_fork(lambda how=how: trained(broken, **how), seconds=random.uniform(0.1, 1.5))  # type: ignore[misc]
        assert code in (0, -signal.SIGKILL)
        died += code != 0
        if code == 0:
            break
    else:
        assert in_fork(lambda: trained(broken, resume=tmp_path / "broken")) == 0
    assert died
    found = files_of(tmp_path / "broken", but=DIFFER)
    by_name = {name.split("/")[-1]: content for name, content in found.items()}
    for name, content in expected.items():
        assert by_name[name.split("/")[-1]] == content, name
