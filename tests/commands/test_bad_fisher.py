"""What `clmerge fisher` refuses: outputs it may not touch, models and rows it cannot use."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import tensor_digest
from tests.commands.models import SIDECAR, run, said_by, write_rows
from tests.commands.running import clmerge, failure_lines, refused
from tests.commands.trees import snapshot

ROWS = ("--data", "rows.jsonl")
FULL = ("--store-dtype", "float32")
LAYER = "model.layers.0.mlp.up_proj.weight"


# What is there already


def test_other_options_need_force(models: Path) -> None:
    run("fisher", "a", *ROWS)
    says = ("the sidecar exists and was made with other options", f"a/{SIDECAR}", "--force")
    refused("fisher", "a", *ROWS, "--seed", "1", unchanged=models, says=says)
    write_rows(models / "more.jsonl", [{"text": "a green log"}])
    refused("fisher", "a", "--data", "more.jsonl", unchanged=models, says=says)
    assert run("fisher", "a", *ROWS, "--seed", "1", "--force")["state"] == "published"


def test_other_options_need_force_over_a_sharded_sidecar_too(models: Path) -> None:
    line = ("fisher", "a", *ROWS, "--shard-size", "3KB")
    run(*line)
    says = ("the sidecar exists and was made with other options", "--force")
    refused(*line, "--seed", "1", unchanged=models, says=says)
    run("fisher", "a", *ROWS, "--seed", "1", "--force")
    left = [path.name for path in (models / "a" / "clmerge").iterdir()]
    assert left == ["fisher.safetensors"]


def test_the_sidecar_of_weights_that_are_gone_is_replaced(models: Path) -> None:
    run("fisher", "a", *ROWS)
    shutil.copy(models / "b" / "model.safetensors", models / "a" / "model.safetensors")
    assert run("fisher", "a", *ROWS)["state"] == "published"
    assert said_by(models / "a" / SIDECAR)["tensors"][LAYER]["digest"] == tensor_digest(
        load_file("b/model.safetensors")[LAYER]
    )


@pytest.mark.parametrize("output", ["a/model.safetensors", "a/extra.safetensors"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_nothing_is_ever_written_beside_or_over_the_models_weights(
    models: Path, output: str, force: list[str]
) -> None:
    line = ("fisher", "a", *ROWS, "-o", output, *force)
    refused(*line, unchanged=models, says=(f"-o {output}",), code=2)


@pytest.mark.parametrize("output", ["b/model.safetensors", "letter.safetensors"])
def test_force_replaces_nothing_but_a_sidecar(models: Path, output: str) -> None:
    (models / "letter.safetensors").write_text("years of work")
    says = (output,)
    refused("fisher", "a", *ROWS, "-o", output, "--force", unchanged=models, says=says)


def test_the_sidecar_of_another_model_is_replaced_by_force_alone(models: Path) -> None:
    run("fisher", "a", *ROWS, "-o", "f.safetensors")
    line = ("fisher", "b", *ROWS, "-o", "f.safetensors")
    refused(*line, unchanged=models, says=("the sidecar exists", "f.safetensors", "--force"))
    assert run(*line, "--force")["state"] == "published"


def test_an_output_is_a_safetensors_file(models: Path) -> None:
    says = ("a sidecar is a .safetensors file", "-o out", "-o out.safetensors")
    refused("fisher", "a", *ROWS, "-o", "out", unchanged=models, says=says, code=2)


def test_a_model_that_cannot_be_written_to_is_told_the_line_to_type(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Any, mode: int) -> bool:
        return not (mode & os.W_OK and str(path).startswith(str(models / "a")))

    monkeypatch.setattr(os, "access", read_only)
    says = ("cannot be written to", f"a/{SIDECAR}", "clmerge fisher a --data", "-o fisher.safe")
    refused("fisher", "a", *ROWS, unchanged=models, says=says)
    assert run("fisher", "a", *ROWS, "-o", "fisher.safetensors")["state"] == "published"


def test_a_disk_without_room_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    says = ("no room on the disk", "1000 are free")
    refused("fisher", "a", *ROWS, unchanged=models, says=says)


# What it cannot use


def drop(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        tensors = load_file(place / "c" / "model.safetensors")
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
        save_file(tensors, place / "c" / "model.safetensors", metadata={"format": "pt"})

    return change


def config(model: str, **changed: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        path = place / model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def nan(place: Path) -> None:
    tensors = load_file(place / "a" / "model.safetensors")
    tensors[LAYER][0, 0] = math.nan
    save_file(tensors, place / "a" / "model.safetensors", metadata={"format": "pt"})


def rows(text: str) -> Callable[[Path], None]:
    return lambda place: (place / "rows.jsonl").write_text(text) and None


def nothing(place: Path) -> None:
    pass


def no_tokenizer(place: Path) -> None:
    for path in (place / "a").glob("tokenizer*"):
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "no such data": (nothing, "a --data gone.jsonl", ("no such file", "gone.jsonl")),
    "a glob of nothing": (nothing, "a --data *.nothing", ("no file matches", "*.nothing")),
    "data of no known kind": (nothing, "a --data a/config.txt2", ("no such file",)),
    "empty data": (rows(""), "a --data rows.jsonl", ("a data file is empty", "rows.jsonl")),
    "broken JSON": (
        rows('{"text": "fine"}\n{"text": \n'),
        "a --data rows.jsonl",
        ("a line is not JSON", "rows.jsonl:2"),
    ),
    "no such field": (
        nothing,
        "a --data rows.jsonl --text-field body",
        ("no field 'body'", "rows.jsonl:1", "it has 'text'"),
    ),
    "one token a row": (
        rows('{"text": "cat"}\n'),
        "a --data rows.jsonl",
        ("no row is left to compute on", "at least two tokens"),
    ),
    "an unknown label": (
        rows('{"text": "the cat", "label": "furious"}\n'),
        "c --data rows.jsonl",
        ("furious", "rows.jsonl:1"),
    ),
    "no label for empirical": (
        nothing,
        "c --data rows.jsonl --estimator empirical",
        ("label",),
    ),
    "no tokenizer": (no_tokenizer, "a --data rows.jsonl", ("no tokenizer", "a")),
    "a classifier without its head": (
        drop("classifier."),
        "c --data labelled.csv",
        ("classifier.weight", "c"),
    ),
    "a model without a layer": (drop("bert.encoder.layer.1."), "c --data labelled.csv", ("c",)),
    "a kind that is not supported": (
        config("a", architectures=["LlamaModel"]),
        "a --data rows.jsonl",
        ("cannot be computed", "LlamaModel", "causal language models"),
    ),
    "quantised": (
        config("a", quantization_config={"quant_method": "gptq"}),
        "a --data rows.jsonl",
        ("quantised", "gptq"),
    ),
    "a regression": (
        config("c", problem_type="regression"),
        "c --data labelled.csv",
        ("one class per row", "regression"),
    ),
    "NaN": (nan, "a --data rows.jsonl", ("NaN or Inf", f"a: {LAYER}")),
    "no adapter": (nothing, "a --data rows.jsonl --adapter b", ("no adapter", "b")),
    "exclude everything": (nothing, "a --data rows.jsonl --exclude *", ("parameter",)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_it_cannot_use_is_refused_and_nothing_is_left(models: Path, case: str) -> None:
    spoil, line, says = BAD[case]
    spoil(models)
    before = snapshot(models)
    result = clmerge("fisher", *line.split())
    assert result.code in (1, 2), result
    assert result.out == ""
    lines = failure_lines(result)
    assert "unexpected" not in lines[0], result.err
    for part in says:
        assert part in result.err, f"{part!r} is not in:\n{result.err}"
    assert snapshot(models) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a", "missing option '--data'"),
        ("--data rows.jsonl", "missing argument 'MODEL'"),
        ("a --data rows.jsonl --samples 0", "0 is not in the range"),
        ("a --data rows.jsonl --batch-size none", "'none' is neither auto nor a number"),
        ("a --data rows.jsonl --batch-size 0", "'0' is neither auto nor a number"),
        ("a --data rows.jsonl --estimator sgd", "'sgd' is not one of"),
        ("a --data rows.jsonl --store-dtype int8", "'int8' is not one of"),
        ("c --data labelled.csv --draws 2", "draws"),
        ("a --data rows.jsonl --memory 1KB", "--memory 1000"),
        ("a --data rows.jsonl --device cuda:99", "no such GPU here"),
    ],
)
def test_wrong_usage_is_exit_2_and_leaves_nothing(models: Path, line: str, says: str) -> None:
    refused("fisher", *line.split(), unchanged=models, says=(says,), code=2)
