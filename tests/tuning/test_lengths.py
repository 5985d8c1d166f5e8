"""One epoch is a pass over all rows of a task, however many are replayed beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_llama
from training_runs import config_of, steps_of, trained, write_text

from mergekit_cl.continual.mixing import fresh_rows
from mergekit_cl.errors import InputError
from mergekit_cl.tuning import schedule
from mergekit_cl.tuning.plan import plan_training
from mergekit_cl.tuning.schema import Config, Task

TASK = Task(name="a", data=["/a"])


@given(
    st.integers(1, 200),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 12),
    st.integers(0, 100),
)
def test_one_epoch_is_the_fewest_steps_that_learn_every_row(
    rows: int, batch: int, ratio: float, kept: int, first: int
) -> None:
    steps = schedule.steps_of(TASK, rows, batch, ratio=ratio, kept=kept, first=first)
    assert fresh_rows(batch, ratio, kept, steps, first=first) >= rows
    assert fresh_rows(batch, ratio, kept, steps - 1, first=first) < rows


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tiny_llama(tmp_path / "model")
    data = {name: write_text(tmp_path / f"{name}.jsonl", 60, n) for n, name in enumerate("ab")}
    return config_of(
        tmp_path, tmp_path / "model", data, steps=None, batch={"rows": 8}, replay={}, fisher=False
    )


def test_the_plan_tells_the_steps_that_the_run_then_takes(config: Config) -> None:
    planned = plan_training(config, lambda line: None)
    trained(config)
    taken = [step["task"] for step in steps_of(Path(config.output))]
    for task in planned["tasks"]:
        assert task["steps"] == taken.count(task["name"])
        assert 1 <= task["epochs"] < 1 + 8 / task["rows"]
    first, second = planned["tasks"]
    assert first["steps"] == -(-first["rows"] // 8)
    assert second["steps"] == -(-second["rows"] // 6)  # a quarter of each batch is replayed


def test_a_buffer_that_is_not_there_is_refused_by_the_plan(config: Config, tmp_path: Path) -> None:
    replay = {"buffer": str(tmp_path / "nowhere")}
    changed = Config.model_validate({**config.model_dump(by_alias=True), "replay": replay})
    with pytest.raises(InputError, match="buffer cannot be read"):
        plan_training(changed, lambda line: None)
