"""What cannot work is refused before anything is trained, and leaves no folder behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import config_of, trained, write_labelled, write_text

from mergekit_cl.errors import ClmergeError, DataError, InputError, OptionError, OutputError
from mergekit_cl.tuning.engine import check_trackers
from mergekit_cl.tuning.schema import Config


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Config]:
    tiny_llama(tmp_path / "model")
    tasks = {"a": write_text(tmp_path / "a.jsonl", 40, 0)}
    return lambda **settings: config_of(tmp_path, tmp_path / "model", tasks, **settings)


def refused(config: Config, kind: type[ClmergeError]) -> str:
    with pytest.raises(kind) as error:
        trained(config)
    assert not Path(config.output).exists()
    found = error.value
    return f"{found.message} | {found.detail} | {found.hint}"


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"lora": {"targets": ["no_such"]}}, OptionError, "no_such"),
        ({"batch": {"rows": 2, "accumulate": 3}}, OptionError, "batch.rows 2"),
        ({"ewc": {"lambda": 1, "update": "proximal"}, "lora": {}}, OptionError, "coupled"),
        ({"shard": True, "lora": {}}, OptionError, "shard"),
        ({"replay": {"buffer": "nowhere"}}, InputError, "buffer.jsonl"),
        ({"drift": {"state": "nowhere.json"}}, InputError, "nowhere.json"),
        ({"gate": {"suites": {"held": ["nowhere.jsonl"]}}}, DataError, "nowhere.jsonl"),
        ({"gate": {"anchor": "nowhere"}}, InputError, "nowhere"),
        ({"ewc": {"lambda": 1, "sidecars": ["no.safetensors"], "anchors": ["no"]}}, InputError,
         "no.safetensors"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named(
    make: Callable[..., Config], settings: dict[str, Any], kind: type[ClmergeError], said: str
) -> None:
    assert said in refused(make(**settings), kind)


def test_missing_rows_files_and_tokenizers_are_named(
    tmp_path: Path, make: Callable[..., Config]
) -> None:
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert "a.jsonl" in refused(make(), DataError)
    nowhere = make().model_copy(update={"model": str(tmp_path / "nowhere")})
    assert "nowhere" in refused(nowhere, InputError)
    (tmp_path / "b.jsonl").rename(tmp_path / "a.jsonl")
    for path in (tmp_path / "model").glob("token*"):
        path.unlink()
    assert "tokenizer" in refused(make(), InputError)


def test_labels_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path / "model", labels=("no", "yes"))
    rows = write_labelled(tmp_path / "a.jsonl", 20, 0, ("no", "maybe"))
    config = config_of(tmp_path, tmp_path / "model", {"a": rows})
    assert "maybe" in refused(config, DataError)


def test_a_full_disk_is_noticed_before(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "no room" in refused(make(), OutputError)


def test_a_gate_without_rows_is_refused(make: Callable[..., Config]) -> None:
    config = make(gate={})
    bare = config.task[0].model_copy(update={"validation_share": 0.0})
    assert "no rows to judge by" in refused(config.model_copy(update={"task": [bare]}), OptionError)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_cl.tuning.engine.find_spec", lambda name: None)
    with pytest.raises(OptionError) as error:
        check_trackers(["wandb"])
    assert "pip install wandb" in str(error.value.hint)
    check_trackers([])
