"""New tasks after a finished run: its model, protection, buffer, average and drift state go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_llama
from training_runs import config_of, files_of, lines_of, steps_of, trained, write_text

from mergekit_cl.errors import MismatchError, OptionError, OutputError
from mergekit_cl.training.bufferfile import load_buffer
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
    assert not (root / "second").exists()
