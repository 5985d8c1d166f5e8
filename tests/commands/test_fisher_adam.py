"""`clmerge fisher --estimator adam`: what a training's optimizer says, recorded as what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.models import SIDECAR, run, said_by, stored
from tests.commands.running import clmerge, refused


class Rows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Eight rows of token numbers, each its own target."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = [(index * 7 + position) % 40 for position in range(6)]
        return {"input_ids": ids, "labels": ids}


def train(model: Path, place: Path) -> Any:
    """Two steps of the Trainer of transformers; gives it, with `checkpoint-2` on the disk."""
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(place),
        max_steps=2,
        save_steps=2,
        weight_decay=0.1,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    net = transformers.AutoModelForCausalLM.from_pretrained(model)
    trainer = transformers.Trainer(model=net, args=arguments, train_dataset=Rows())
    trainer.train()
    for file in (*model.glob("token*"), *model.glob("special*")):
        shutil.copy(file, place / "checkpoint-2")
    return trainer


LINE = ("--estimator", "adam", "--optimizer", "run/checkpoint-2/optimizer.pt")


def test_a_trainer_s_checkpoint_gives_its_second_moments_and_nothing_else(models: Path) -> None:
    trainer = train(models / "tied", models / "run")
    document = run("fisher", "run/checkpoint-2", *LINE, "--store-dtype", "float32")
    found = stored(models / "run/checkpoint-2" / SIDECAR)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    wanted = {
        names[id(parameter)]: state["exp_avg_sq"] / (1 - 0.999**2)
        for parameter, state in trainer.optimizer.optimizer.state.items()
    }
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name

    said = said_by(models / "run/checkpoint-2" / SIDECAR)
    assert (said["estimator"], said["unit"], said["level"]) == ("adam", "optimizer", "batch")
    assert (said["optimizer"]["steps"], said["optimizer"]["beta2"]) == (2, [0.999])
    assert (said["examples"], said["mean_nll"]) == (0, None)
    assert "data_digest" not in said
    assert document["trace_standard_error"] is None
    again = clmerge("fisher", "run/checkpoint-2", *LINE, "--store-dtype", "float32")
    assert "up to date" in again.err


def test_the_files_of_stacked_experts_get_their_parts(models: Path) -> None:
    trainer = train(models / "moe", models / "run")
    run("fisher", "run/checkpoint-2", *LINE, "--store-dtype", "float32")
    found = stored(models / "run/checkpoint-2" / SIDECAR)
    assert found.keys() == stored(models / "run/checkpoint-2/model.safetensors").keys()
    total = sum(
        float((state["exp_avg_sq"].double() / (1 - 0.999**2)).sum())
        for state in trainer.optimizer.optimizer.state.values()
    )
    assert sum(float(values.double().sum()) for values in found.values()) == pytest.approx(total)


def test_it_merges_with_its_own_kind_alone_and_predicts_no_loss(models: Path) -> None:
    for name in ("a", "b"):
        train(models / name, models / "run")
        run("fisher", "run/checkpoint-2", *LINE)
        shutil.move("run/checkpoint-2", f"tuned-{name}")
    run("fisher-merge", "tuned-a", "tuned-b", "-o", "both")
    divergence = json.loads((models / "both/clmerge/divergence.json").read_text())
    text = json.dumps(divergence["model"])
    assert text.count('"predicted_kl": null') == text.count('"predicted_kl"') > 0
    assert text.count('"predicted_loss": null') == text.count('"predicted_loss"')
    assert all(entry["predicted_kl"] is None for entry in divergence["tensors"])

    run("fisher", "a", "--data", "rows.jsonl")
    line = ("fisher-merge", "tuned-b", "a", "-o", "mixed")
    refused(*line, unchanged=models, says=("differ in estimator", "adam", "--allow-mixed-fisher"))
    run(*line, "--allow-mixed-fisher")
    manifest = json.loads((models / "mixed/clmerge/manifest.json").read_text())
    assert manifest["options"]["estimators"] == ["adam", "mc"]


def test_bad_lines_and_files_change_nothing(models: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    torch.save(optimizer.state_dict(), "sgd.pt")
    line = ("fisher", "a", "--estimator", "adam")
    refused(*line, "--optimizer", "sgd.pt", unchanged=models, says=("the momentum of SGD",))
    refused(*line, "--optimizer", "none.pt", unchanged=models, says=("no such file",))
    refused(*line, unchanged=models, says=("--optimizer",), code=2)
    both = ("--optimizer", "sgd.pt", "--data", "rows.jsonl")
    refused(*line, *both, unchanged=models, says=("read as it is",), code=2)
    mc = ("fisher", "a", "--optimizer", "sgd.pt", "--data", "rows.jsonl")
    refused(*mc, unchanged=models, says=("--estimator adam",), code=2)


def test_a_dry_run_needs_no_rows_and_writes_nothing(models: Path) -> None:
    (models / "optimizer.pt").write_bytes(b"")
    document = run("fisher", "a", "--estimator", "adam", "--optimizer", "optimizer.pt", "--dry-run")
    assert document["rows_at_most"] == 0
    assert not (models / "a" / SIDECAR).exists()
