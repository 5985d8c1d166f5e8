"""`torchrun ... -m mergekit_cl train`: several processes learn what one does, and one speaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import free_port
from safetensors.torch import load_file
from served import serving
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import config_of, steps_of, trained, write_labelled, write_text

from mergekit_cl.tuning.reading import config_text
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.strength import FILE

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tiny_llama(tmp_path / "model", tied=True)
    for number, name in enumerate("ab"):
        write_text(tmp_path / f"{name}.jsonl", 60, number)
    return config_of(
        tmp_path,
        tmp_path / "model",
        {name: tmp_path / f"{name}.jsonl" for name in "ab"},
        steps=12,
        batch={"rows": 8, "accumulate": 2},
        ewc={"lambda": 10.0, "samples": 16},
        replay={"rows": 20},
        ema={"half_life": 3.0, "snapshot_every": 8},
        save_every=2,
        output=str(tmp_path / "one"),
    )


def launch(path: Path, config: Config, *line: str) -> subprocess.Popen[str]:
    path.write_text(config_text(config))
    launcher = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    command = ["-m", "mergekit_cl", "train", str(path), "--json", *line]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def clmerge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("bin")) as program:
        yield program


def together(clmerge: Path, path: Path, config: Config, *line: str) -> tuple[str, str]:
    """stdout and stderr of two processes that get what torchrun gives them, and start at once."""
    path.write_text(config_text(config))
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            [clmerge, "train", path, "--json", *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        said = [one.communicate(timeout=120) for one in running]
    finally:
        for one in running:
            one.kill()
    out, err = map("".join, zip(*said, strict=True))
    assert [one.returncode for one in running] == [0, 0], err
    return out, err


def distance(one: Path, other: Path, file: str) -> float:
    """The greatest relative difference of a tensor, in norm."""
    mine, theirs = (load_file(next(run.glob(f"state/*/{file}"))) for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max(
        float((mine[name] - theirs[name]).norm() / mine[name].norm().clamp(min=1e-12))
        for name in mine
    )


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "fsdp2"])
def test_two_processes_learn_what_one_does_in_two_dozen_steps(
    tmp_path: Path, config: Config, shard: bool, clmerge: Path
) -> None:
    trained(config)
    again = config.model_copy(update={"output": str(tmp_path / "two"), "shard": shard})
    if shard:
        out, err = together(clmerge, tmp_path / "two.yaml", again)
    else:
        running = launch(tmp_path / "two.yaml", again)
        out, err = running.communicate(timeout=240)
        assert running.returncode == 0, err
    assert json.loads(out)["state"] == "finished"  # one document, by one of them
    assert "Warning" not in err, err
    for file in ("weights", "average", "tracks", "protection"):
        name = f"{file}.safetensors"
        assert distance(tmp_path / "one", tmp_path / "two", name) < 1e-5, file
    for step in (8, 16, 24):
        name = f"snapshots/{step:08d}.safetensors"
        kept = [load_file(tmp_path / run / name) for run in ("one", "two")]
        assert kept[0].keys() == kept[1].keys()
        for key, values in kept[0].items():
            torch.testing.assert_close(kept[1][key], values, rtol=1e-4, atol=1e-5)
    mine, theirs = steps_of(tmp_path / "one"), steps_of(tmp_path / "two")
    assert len(mine) == len(theirs) == 24
    assert max(line.get("penalty", 0.0) for line in mine) > 0
    for one, other in zip(mine, theirs, strict=True):
        for key, value in one.items():
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert other[key] == wanted, (one["step"], key)
    models = [load_file(tmp_path / run / "model/model.safetensors") for run in ("one", "two")]
    for name, values in models[0].items():
        torch.testing.assert_close(models[1][name], values, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "two/model/clmerge/fisher.safetensors").is_file()


def test_an_adapter_is_trained_by_two_processes(tmp_path: Path, clmerge: Path) -> None:
    labels = ("negative", "positive")
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny_bert_classifier(tmp_path / "model", labels=labels, **calm)
    rows = write_labelled(tmp_path / "rows.jsonl", 60, 0, labels)
    lora = {"rank": 2, "targets": ["query"]}
    config = config_of(
        tmp_path, tmp_path / "model", {"a": rows}, lora=lora, output=str(tmp_path / "one")
    )
    trained(config)
    again = config.model_copy(update={"output": str(tmp_path / "two")})
    together(clmerge, tmp_path / "two.yaml", again)
    assert distance(tmp_path / "one", tmp_path / "two", "weights.safetensors") < 1e-5


def test_interrupted_in_two_processes_a_run_is_resumed_in_one(
    tmp_path: Path, config: Config
) -> None:
    trained(config)
    longer = config.model_copy(update={"output": str(tmp_path / "two")})
    running = launch(tmp_path / "two.yaml", longer)
    metrics = tmp_path / "two/metrics.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (tmp_path / "two/state/current.json").exists():
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    assert (tmp_path / "two/run.json").exists(), err
    if json.loads((tmp_path / "two/run.json").read_text())["state"] != "finished":
        trained(longer, resume=tmp_path / "two")
    assert metrics.exists()
    assert distance(tmp_path / "one", tmp_path / "two", "weights.safetensors") < 1e-5


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapter"])
def test_two_processes_find_the_lambda_that_one_finds(
    tmp_path: Path, config: Config, lora: dict[str, int] | None, clmerge: Path
) -> None:
    auto = {"lambda": "auto", "samples": 8, "auto": {"candidates": [1.0, 100.0], "steps": 2}}
    both = {**config.model_dump(by_alias=True), "ewc": auto, "lora": lora, "fisher": False}
    trained(Config.model_validate(both))
    other = Config.model_validate(both)
    together(clmerge, tmp_path / "two.yaml", other, "-o", f"{tmp_path}/two")
    mine, theirs = (json.loads((tmp_path / run / FILE).read_text()) for run in ("one", "two"))
    assert mine["chosen"] == theirs["chosen"]
    assert len(mine["trials"]) == len(theirs["trials"]) == 3
    for one, other in zip(mine["trials"], theirs["trials"], strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert not list(tmp_path.glob(".*"))
