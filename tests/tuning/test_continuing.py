"""New tasks after a finished run: its model, protection, buffer, average and drift state go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, tiny_llama
from training_runs import config_of, files_of, lines_of, steps_of, trained, write_text

from mergekit_cl.errors import MismatchError, OptionError, OutputError
from mergekit_cl.training.bufferfile import load_buffer
from mergekit_cl.tuning.plan import plan_training
from mergekit_cl.tuning.schema import Config

EVERYTHING: dict[str, Any] = {
    "ewc": {"lambda": 10.0, "samples": 20},
    "replay": {"rows": 20, "ratio": 0.25},
    "ema": {"half_life": 3.0},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    for number, name in enumerate("ab"):
        write_text(tmp_path / f"{name}.jsonl", 60, number)
    return tmp_path


def config(root: Path, names: str, output: str, **settings: Any) -> Config:
    tasks = {name: root / f"{name}.jsonl" for name in names}
    return config_of(
        root, root / "model", tasks, **{**EVERYTHING, **settings}, output=str(root / output)
    )


def state_of(run: Path, file: str) -> dict[str, torch.Tensor]:
    (found,) = run.glob(f"state/*/{file}")
    return load_file(found)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}])
def test_two_runs_in_a_row_are_one_run_of_both_tasks(root: Path, lora: Any) -> None:
    trained(config(root, "ab", "both", lora=lora))
    trained(config(root, "a", "first", lora=lora))
    before = files_of(root / "first")
    trained(config(root, "b", "second", lora=lora), continue_from=root / "first")
    assert files_of(root / "first") == before
    for file in ("weights", "average", "protection"):
        one = state_of(root / "both", f"{file}.safetensors")
        other = state_of(root / "second", f"{file}.safetensors")
        assert one.keys() == other.keys()
        for name in one:
            # Its validation rows are not held out from a task that was over before they came.
            torch.testing.assert_close(one[name], other[name], msg=f"{file} {name}")
    folder = "model" if lora is None else "adapter"
    rows = load_buffer(root / f"second/{folder}/clmerge").rows()
    assert {kept.task for kept in rows} == {"a", "b"}
    assert [line["step"] for line in steps_of(root / "second")] == list(range(7, 13))


def test_the_matrix_goes_on_where_it_was(root: Path) -> None:
    trained(config(root, "a", "first"))
    outcome, _ = trained(config(root, "b", "second"), continue_from=root / "first")
    matrix = outcome.matrix["loss"]
    assert list(matrix["tasks"]) == ["a", "b"]
    assert len(matrix["entries"]) == 2
    assert matrix["entries"][0][1] is not None  # b before it was learned
    assert matrix["backward_transfer"] is not None
    assert json.loads((root / "second/tasks.json").read_text())["loss"]["tasks"] == ["a", "b"]
    evaluations = [
        line for line in lines_of(root / "second/metrics.jsonl") if line["kind"] == "evaluation"
    ]
    assert evaluations[-1]["tasks"].keys() == {"a", "b"}


def test_what_cannot_be_built_on_is_refused(root: Path) -> None:
    trained(config(root, "a", "first"))
    with pytest.raises(OptionError, match="a folder of its own"):
        trained(config(root, "b", "first"), continue_from=root / "first", force=True)
    with pytest.raises(OutputError):
        trained(config(root, "b", "first"), continue_from=root / "first")
    with pytest.raises(OptionError, match="in the earlier run"):
        trained(config(root, "a", "second"), continue_from=root / "first")
    with pytest.raises(OptionError, match="only a finished run"):
        trained(config(root, "b", "second"), continue_from=root / "nowhere")
    with pytest.raises(MismatchError, match="another model or adapter"):
        trained(config(root, "b", "second", lora={"rank": 2}), continue_from=root / "first")
    suites = {"gate": {"suites": {"a": [str(root / "a.jsonl")]}}}
    with pytest.raises(OptionError, match="in the earlier run"):
        trained(config(root, "b", "second", **suites), continue_from=root / "first")
    tiny_llama(root / "larger", vocab_size=VOCAB_SIZE + 8)
    larger = config(root, "b", "second").model_copy(update={"model": str(root / "larger")})
    with pytest.raises(MismatchError, match="another model or adapter") as refused:
        trained(larger, continue_from=root / "first")
    assert "embed_tokens" in str(refused.value.detail)
    shutil.rmtree(root / "first/state")
    second = config(root, "b", "second")
    with pytest.raises(OptionError, match="state was removed"):
        trained(second, continue_from=root / "first")
    with pytest.raises(OptionError, match="state was removed"):
        plan_training(second, print, root / "first")
    assert not (root / "second").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ema": {"half_life": 5.0}}, "ema.half_life"),
        ({"drift": {"detector": "cusum"}}, "drift.detector"),
        ({"drift": {"state": "/drift.json"}}, "drift.state"),
    ],
)
def test_what_goes_on_with_its_state_is_not_set_otherwise(
    root: Path, settings: dict[str, Any], said: str
) -> None:
    trained(config(root, "a", "first", drift={}))
    with pytest.raises(OptionError, match="set otherwise") as refused:
        trained(config(root, "b", "second", **settings), continue_from=root / "first")
    assert said in str(refused.value.detail)
    free = {"ema": {"half_life": 3.0, "publish": False}, "drift": {"stop": True}}
    trained(config(root, "b", "second", **free), continue_from=root / "first")


def test_fishers_of_two_estimators_are_not_added_up(root: Path) -> None:
    trained(config(root, "a", "first"))
    other = {"ewc": {"lambda": 1.0, "samples": 20, "estimator": "empirical"}}
    with pytest.raises(MismatchError, match="do not add up") as refused:
        trained(config(root, "b", "second", **other), continue_from=root / "first")
    assert refused.value.hint == 'ewc.estimator = "mc"'
    sidecar = str(root / "first/model/clmerge/fisher.safetensors")
    ewc = {**other["ewc"], "sidecars": [sidecar], "anchors": [str(root / "first/model")]}
    with pytest.raises(MismatchError, match="do not add up"):
        trained(config(root, "b", "second", ewc=ewc))
    assert not (root / "second").exists()


def test_an_average_that_the_earlier_run_did_not_keep_begins_at_its_weights(root: Path) -> None:
    trained(config(root, "a", "first", ema=None))
    slow = {"half_life": 1e9, "warmup": False}
    trained(config(root, "b", "second", ema=slow, steps=1), continue_from=root / "first")
    before = state_of(root / "first", "weights.safetensors")
    for name, average in state_of(root / "second", "average.safetensors").items():
        torch.testing.assert_close(average, before[name], rtol=0, atol=1e-6)


def test_the_gate_goes_on_counting_its_looks(root: Path) -> None:
    gate = {"min_rows": 2, "margin": 0.5}
    trained(config(root, "a", "first", gate=gate))
    trained(config(root, "b", "second", gate=gate), continue_from=root / "first")
    (verdict,) = (root / "second/verdicts").glob("*.json")
    found = {one["suite"]: one for one in json.loads(verdict.read_text())["comparisons"]}
    assert {name: one["look"] for name, one in found.items()} == {"a": 2, "b": 1}
    assert {name: one["alpha"] for name, one in found.items()} == {"a": 0.05 / 6, "b": 0.05 / 2}
