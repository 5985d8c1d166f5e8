"""A run that continues another is resumed like any other, wherever it was killed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_llama
from training_runs import config_of, dying_at, files_of, in_fork, lines_of, trained, write_text

from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.tuning.schema import Config

DIFFER = ("manifest.json", "run.json", "times.jsonl", "config.yaml", "report.html", "lock")
EVERYTHING: dict[str, Any] = {
    "ewc": {"lambda": 10.0, "samples": 20},
    "replay": {"rows": 20, "ratio": 0.25},
    "ema": {"half_life": 3.0},
    "gate": {"min_rows": 2, "margin": 0.5},
    "save_every": 2,
}
NOTHING_SAVED = [dying_at("evaluate")]
IN_BOTH = [dying_at("evaluate"), dying_at("train b"), dying_at("gate"), dying_at("evaluate")]


def config(root: Path, name: str, output: str, **settings: Any) -> Config:
    values = {**EVERYTHING, **settings, "output": str(root / output)}
    return config_of(root, root / "model", {name: root / f"{name}.jsonl"}, **values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a finished run of the task a."""
    tiny_llama(tmp_path / "model")
    for number, name in enumerate("ab"):
        write_text(tmp_path / f"{name}.jsonl", 60, number)
    assert in_fork(lambda: trained(config(tmp_path, "a", "first"))) == 0
    return tmp_path


def killed(root: Path, deaths: list[Any], **settings: Any) -> Config:
    """The config of a run of b after a that was killed by each of these in turn."""
    found = config(root, "b", "second", **settings)
    how: dict[str, Any] = {"continue_from": root / "first"}
    for progress in deaths:
        code = in_fork(lambda how=how, progress=progress: trained(found, progress=progress, **how))  # type: ignore[misc]
        assert code == -signal.SIGKILL
        how = {"resume": root / "second"}
    return found


@pytest.mark.parametrize("deaths", [NOTHING_SAVED, IN_BOTH], ids=["nothing saved", "in both"])
@pytest.mark.parametrize("gate", [EVERYTHING["gate"], None], ids=["gate", "no gate"])
def test_it_is_the_same_run_to_the_bit(root: Path, deaths: list[Any], gate: Any) -> None:
    second = root / "second"
    deaths = deaths if gate else [d for d in deaths if d is not IN_BOTH[2]]
    whole = config(root, "b", "second", gate=gate)
    assert in_fork(lambda: trained(whole, continue_from=root / "first")) == 0
    second.rename(root / "whole")  # verdicts name the folder
    again = killed(root, deaths, gate=gate)
    assert in_fork(lambda: trained(again, resume=second)) == 0
    expected, found = (
        {name.split("/")[-1]: content for name, content in files_of(place, but=DIFFER).items()}
        for place in (root / "whole", second)
    )
    assert {"average.safetensors", "protection.safetensors", "buffer.jsonl"} < expected.keys()
    assert found == expected
    last = lines_of(second / "metrics.jsonl")[-1]
    assert last["kind"] == "evaluation"
    assert last["tasks"].keys() == {"a", "b"}


def test_it_needs_the_earlier_run_until_its_state_was_taken_over(root: Path) -> None:
    second = killed(root, NOTHING_SAVED)
    (root / "first").rename(root / "elsewhere")
    with pytest.raises(InputError, match="continues is gone") as refused:
        trained(second, resume=root / "second")
    assert str(root / "first") in str(refused.value.detail)
    (root / "elsewhere").rename(root / "first")
    dies = dying_at("train b")
    assert in_fork(lambda: trained(second, resume=root / "second", progress=dies)) != 0
    shutil.rmtree(root / "first")
    outcome, _ = trained(second, resume=root / "second")
    assert list(outcome.matrix["loss"]["tasks"]) == ["a", "b"]


def test_another_run_in_the_earlier_ones_place_is_not_taken_for_it(root: Path) -> None:
    second = killed(root, NOTHING_SAVED)
    trained(config(root, "a", "first", seed=1), force=True)
    with pytest.raises(MismatchError, match="has changed since"):
        trained(second, resume=root / "second")


def test_the_same_command_again_is_up_to_date_and_one_on_another_run_is_not(root: Path) -> None:
    from mergekit_cl.errors import OutputError

    second = config(root, "b", "second")
    trained(second, continue_from=root / "first")
    again, _ = trained(second, continue_from=root / "first")
    assert again.state == "up to date"
    with pytest.raises(OutputError, match="a finished run is there"):
        trained(second)
    trained(config(root, "a", "first", seed=1), force=True)
    with pytest.raises(OutputError, match="a finished run is there"):
        trained(second, continue_from=root / "first")
