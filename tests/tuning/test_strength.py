"""`ewc.lambda = "auto"`: short runs before the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from training_runs import config_of, lines_of, trained, write_text

import fisher
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import ClmergeError, Interrupted, OptionError
from mergekit_cl.tuning import run as running
from mergekit_cl.tuning import strength
from mergekit_cl.tuning.schema import Config, Ema


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auto")
    tiny_llama(root / "model")
    for number, name in enumerate("abc"):
        write_text(root / f"{name}.jsonl", 40, number)
    return root


def config(
    place: Path,
    output: Path,
    tasks: str = "abc",
    others: Mapping[str, Any] = MappingProxyType({}),
    **ewc: Any,
) -> Config:
    settings = {"lambda": "auto", "samples": 8, **ewc}
    settings["auto"] = {"candidates": [1.0, 1e9], "steps": 2, **ewc.get("auto", {})}
    data = {name: place / f"{name}.jsonl" for name in tasks}
    return config_of(
        output.parent,
        place / "model",
        data,
        steps=3,
        output=str(output),
        ewc=settings,
        fisher=False,
        **others,
    )


def unjudged(given: Config) -> Config:
    """The same with all rows to learn, and none to be judged by."""
    tasks = [task.model_copy(update={"validation_share": 0.0}) for task in given.task]
    return given.model_copy(update={"task": tasks})


@pytest.fixture(scope="module")
def outcome(place: Path) -> tuple[Path, list[str]]:
    _, told = trained(config(place, place / "run"))
    return place / "run", told


def test_every_candidate_and_none_are_tried_on_all_tasks_but_the_last(
    outcome: tuple[Path, list[str]],
) -> None:
    run, told = outcome
    found = json.loads((run / "strength.json").read_text())
    assert [trial["lambda"] for trial in found["trials"]] == [0.0, 1.0, 1e9]
    assert all(trial["losses"].keys() == {"a", "b"} for trial in found["trials"])
    means = {trial["lambda"]: trial["mean"] for trial in found["trials"]}
    assert found["chosen"] == min(means, key=lambda value: (means[value], -value))
    assert sum(line.startswith("lambda ") for line in told) == 3
    assert sum("<- chosen" in line for line in told) == 1


def test_the_run_is_the_one_of_the_lambda_that_was_chosen(
    outcome: tuple[Path, list[str]], place: Path, tmp_path: Path
) -> None:
    chosen = json.loads((outcome[0] / "strength.json").read_text())["chosen"]
    given = config(place, tmp_path / "run", **{"lambda": chosen})
    trained(given)
    assert lines_of(tmp_path / "run/metrics.jsonl") == lines_of(outcome[0] / "metrics.jsonl")


def test_trials_average_as_the_run_does_and_keep_no_snapshots(place: Path) -> None:
    ema = {"half_life": 3.0, "snapshot_every": 2}
    given = config(place, place / "other").model_copy(update={"ema": Ema.model_validate(ema)})
    assert given.ewc is not None
    trial = strength.trial_config(given, given.ewc, 1.0, given.task, place / "trials")
    assert trial.ema == Ema(half_life=3.0)
    without = given.model_copy(update={"ema": None})
    assert strength.trial_config(without, given.ewc, 1.0, given.task, place).ema is None


def test_nothing_is_left_beside_the_run(outcome: tuple[Path, list[str]]) -> None:
    assert not list(outcome[0].parent.glob(".run*"))


def test_a_finished_run_is_resumed_without_a_trial(
    outcome: tuple[Path, list[str]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_learn", None)
    again, _ = trained(config(place, place / "run"), resume=outcome[0])
    assert again.state == "up to date"


def test_after_an_interruption_the_trials_that_are_left_are_made(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def learn(trial: Config, *_: Any) -> strength.Learned:
        assert trial.ewc is not None
        assert not isinstance(trial.ewc.strength, str)
        if trial.ewc.strength == 1e9 and len(tried) == 2:
            tried.append(-1)
            raise Interrupted(15, hint="--resume the trial")
        tried.append(trial.ewc.strength)
        return strength.Learned(tmp_path, {"a": 1.0, "b": 2.0 - trial.ewc.strength / 1e9})

    monkeypatch.setattr(running, "_learn", learn)
    with pytest.raises(Interrupted) as caught:
        trained(config(place, tmp_path / "run"))
    assert caught.value.hint == "the same command goes on with the trials that are left"
    trained(config(place, tmp_path / "run"))
    assert tried == [0.0, 1.0, -1, 1e9]


def test_a_budget_takes_the_smallest_lambda_that_keeps_it(place: Path, tmp_path: Path) -> None:
    anchor = open_checkpoint(place / "model")
    names = [name for name, tensor in anchor.tensors.items() if tensor.is_float]
    digests = checkpoint_digests(anchor)
    said = {"estimator": "mc", "unit": "per_example", "level": "example", "examples": 4}
    said |= {"tokens": 40, "calibration": 3.0}
    said["tensors"] = {name: {"digest": digests[name]} for name in names}
    values = {name: torch.ones(anchor.tensors[name].shape) for name in names}
    fisher.save(tmp_path / "f.safetensors", values, said)
    with_sidecar = {
        "sidecars": [str(tmp_path / "f.safetensors")],
        "anchors": [str(place / "model")],
        "auto": {"budget": 0.01, "candidates": [1e-6, 1e9]},
    }
    trying = config(place, tmp_path / "run", "a", update="proximal", **with_sidecar)
    told = trained(unjudged(trying))[1]  # what is predicted needs no rows
    found = json.loads((tmp_path / "run/strength.json").read_text())
    weak, strong = found["trials"]
    assert found["chosen"] == strong["lambda"] == 1e9
    assert strong["forgetting"] <= 0.01 < weak["forgetting"]
    assert any("predicted to lose" in line for line in told)
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    (said,) = (line for line in lines if line["kind"] == "protection")
    assert said["lambda"] == 1e9
    assert said["fisher"] == [{"estimator": "mc", "unit": "per_example"}]
    # By hand: calibration/2 sum F (theta - anchor)^2 per example, at 10 tokens each.
    after = open_checkpoint(tmp_path / "run/model")
    square = sum(float((after.tensor(n) - anchor.tensor(n)).double().square().sum()) for n in names)
    given = config(place, tmp_path / "run", "a", **with_sidecar)
    assert given.ewc is not None
    predicted = strength.predicted_forgetting(given, given.ewc, tmp_path / "run/model")
    assert predicted == pytest.approx(3.0 / 2 * square / 10, rel=1e-6)


@pytest.mark.parametrize(
    ("tasks", "auto", "said"),
    [
        ("a", {}, "two tasks"),
        ("ab", {"tasks": ["a"]}, "two tasks"),
        ("ab", {"tasks": ["a", "z"]}, "no task"),
        ("ab", {"budget": 0.1}, "budget of forgetting needs"),
    ],
)
def test_what_cannot_be_found_out_is_refused_before_anything_is_trained(
    tasks: str, auto: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        trained(config(place, tmp_path / "run", tasks, auto=auto))
    assert list(tmp_path.iterdir()) == []


def test_two_tasks_are_tuned_on_both(place: Path, tmp_path: Path) -> None:
    given = config(place, tmp_path / "run", "ab")
    assert given.ewc is not None
    for continues, names in ((False, ["a", "b"]), (True, ["a"])):
        tasks = strength.tasks_to_try(given, given.ewc, continues=continues, judged="abc")
        assert [task.name for task in tasks] == names


def test_without_rows_to_judge_by_nothing_is_tried(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_learn", None)
    with pytest.raises(OptionError, match="judged by held-out rows") as refused:
        trained(unjudged(config(place, tmp_path / "run")))
    assert refused.value.detail == "no held-out rows for a, b"


def test_a_run_that_kept_no_held_out_rows_is_none_to_see_forgetting_on(place: Path) -> None:
    given = config(place, place / "never", "ab")
    assert given.ewc is not None
    with pytest.raises(OptionError, match="judged by held-out rows"):
        strength.tasks_to_try(given, given.ewc, continues=True, judged="ab")
    assert strength.tasks_to_try(given, given.ewc, continues=True, judged=["ab", "a", "earlier"])


def test_training_that_ends_in_no_number_at_its_last_step_has_diverged(
    place: Path, tmp_path: Path
) -> None:
    wild = {"learning_rate": 1e30, "schedule": "constant"}
    given = config(place, tmp_path / "run", auto={"steps": 1}, others={"optimizer": wild})
    with pytest.raises(OptionError, match="diverged with every lambda"):
        trained(given)


@pytest.mark.parametrize(
    "others",
    [
        {"drift": {"state": "/nowhere/drift.json"}},
        {"gate": {"anchor": "/nowhere/model"}},
        {"gate": {"suites": {"new": ["/nowhere/rows.jsonl"]}}},
        {"gate": {"ledger": "LEDGER"}},
        {"replay": {"buffer": "/nowhere/clmerge"}},
    ],
    ids=lambda others: "-".join([next(iter(others)), *next(iter(others.values()))]),
)
def test_what_the_run_would_refuse_is_refused_before_the_trials(
    others: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_learn", None)
    if "ledger" in others.get("gate", {}):
        (tmp_path / "ledger.json").write_text("no ledger")
        others = {"gate": {"ledger": str(tmp_path / "ledger.json")}}
    with pytest.raises(ClmergeError):
        trained(config(place, tmp_path / "run", others=others))


def test_warnings_come_before_the_trials_and_once(outcome: tuple[Path, list[str]]) -> None:
    _, told = outcome
    warnings = [number for number, line in enumerate(told) if line.startswith("warning: ")]
    trying = next(number for number, line in enumerate(told) if line.startswith("trying "))
    assert warnings
    assert max(warnings) < trying
    assert len({told[number] for number in warnings}) == len(warnings)


def test_a_trial_is_removed_when_the_next_is_done_so_that_no_process_still_reads_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []

    def learn(trial: Config, *_: Any) -> strength.Learned:
        output = Path(trial.output)
        output.mkdir(parents=True)
        there.append(sorted(path.name for path in output.parent.glob("lambda-*")))
        return strength.Learned(output, {"a": 1.0, "b": 1.0})

    monkeypatch.setattr(running, "_learn", learn)
    trained(config(place, tmp_path / "run"))
    assert there == [["lambda-0"], ["lambda-0", "lambda-1"], ["lambda-1", "lambda-1e+09"]]


def test_adapters_are_tried_too(place: Path, tmp_path: Path) -> None:
    given = config(place, tmp_path / "run", others={"lora": {"rank": 2}})
    trained(given)
    found = json.loads((tmp_path / "run/strength.json").read_text())
    assert [trial["diverged"] for trial in found["trials"]] == [False] * 3
    none, weak, strong = (trial["losses"] for trial in found["trials"])
    assert none != strong  # EWC reached the adapter
    assert none.keys() == weak.keys() == {"a", "b"}
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
