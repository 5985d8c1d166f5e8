"""`clmerge ema-average`: from a config key to a model of another half-life, at the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.models import write_rows
from tests.commands.running import clmerge, refused
from tests.commands.trees import same_but_for_cost, snapshot
from tests.tiny_models import TEXTS, tiny_llama

CONFIG = """\
model = "base"
fisher = false
[[task]]
name = "cats"
data = ["cats.jsonl"]
steps = 10
[batch]
rows = 4
[ema]
half_life = 3
snapshot_every = 4
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of ten steps."""
    root = tmp_path_factory.mktemp("made")
    tiny_llama(root / "base", layers=1, tied=True)
    write_rows(root / "cats.jsonl", [{"text": f"{text} {text}"} for text in TEXTS])
    (root / "config.toml").write_text(CONFIG)
    result = clmerge("train", root / "config.toml", "-o", root / "run")
    assert result.code == 0, result.err
    return root


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same as the working folder, put back as it was afterwards."""
    before = snapshot(made)
    monkeypatch.chdir(made)
    yield made
    for name in snapshot(made).keys() - before.keys():
        path = Path(name)
        path.unlink() if path.is_file() else None
    for name in sorted(snapshot(made).keys() - before.keys(), reverse=True):
        Path(name).rmdir()
    for name, content in before.items():
        if content is not None and Path(name).read_bytes() != content:
            Path(name).write_bytes(content)


def test_an_average_is_made_and_verifies(here: Path) -> None:
    result = clmerge("ema-average", "run", "--half-life", "1")
    assert (result.code, result.out) == (0, ""), result.err
    assert "half-life 1 steps at step 10, of 3 snapshots" in result.err
    assert "residual: " in result.err
    assert "output: averaged" in result.err
    found = load_file("averaged/model.safetensors")
    base, last = load_file("base/model.safetensors"), load_file("run/model/model.safetensors")
    assert found.keys() == base.keys() == last.keys()
    assert not any(torch.equal(found[name], last[name]) for name in found)
    assert sorted(p.name for p in Path("averaged/clmerge").iterdir()) == ["manifest.json"]
    assert clmerge("verify", "averaged").code == 0
    assert "clmerge ema-average" in clmerge("inspect", "averaged").out


def test_as_json_there_is_one_document_and_again_it_is_up_to_date(here: Path) -> None:
    line = ("ema-average", "run", "--half-life", "1", "-o", "out")
    first = clmerge(*line, "--json").document
    assert (first["command"], first["state"]) == ("ema-average", "published")
    weights = [one["weight"] for one in first["parts"]]
    assert sum(weights) == pytest.approx(1)
    assert [one["step"] for one in first["parts"]] == [4, 4, 8, 8, 10, 10]
    assert [one["sigma_rel"] for one in first["parts"]] == [0.05, 0.1] * 3
    before = snapshot(here / "out")
    assert clmerge(*line).err == "out is up to date\n"
    again = clmerge(*line, "--json").document
    assert again == {**first, "state": "up to date"}
    assert snapshot(here / "out") == before
    manifest = json.loads((here / "out/clmerge/manifest.json").read_text())
    assert manifest["average"]["residual"] == first["residual"]
    assert clmerge(*line[:-1], "other").code == 0
    assert same_but_for_cost(here / "out", here / "other")


def test_the_plan_writes_nothing_and_tells_what_is_done(here: Path) -> None:
    before = snapshot(here)
    line = ("ema-average", "run", "--half-life", "1")
    plan = clmerge(*line, "--dry-run", "--json").document
    text = clmerge(*line, "--dry-run").out
    assert snapshot(here) == before
    assert "they give" in text
    made = clmerge(*line, "--json").document
    assert {key: plan[key] for key in ("step", "residual", "half_lives", "parts")} == {
        key: made[key] for key in ("step", "residual", "half_lives", "parts")
    }
    files = sorted(Path("run/snapshots").iterdir())
    weights = sum(t.nbytes for file in files for t in load_file(file).values())
    base = sum(t.nbytes for t in load_file("base/model.safetensors").values())
    assert plan["bytes_read"] == weights + base
    assert plan["bytes_written"] == base


def test_the_plan_of_a_run_counts_its_snapshots(here: Path) -> None:
    plan = clmerge("train", "config.toml", "--dry-run", "--json").document
    without = clmerge(
        "train", "config.toml", "--set", "ema.snapshot_every=0", "--dry-run", "--json"
    ).document
    files = sorted(Path("run/snapshots").iterdir())
    tensors = sum(t.nbytes for file in files for t in load_file(file).values())
    assert plan["snapshots"] == {"count": len(files), "bytes": tensors}
    assert without["snapshots"] == {"count": 0, "bytes": 0}
    trained = 4 * plan["parameters"]["trained"]
    assert plan["memory_bytes"]["average"] == 3 * without["memory_bytes"]["average"] == 3 * trained
    # Three states hold two averages more each.
    assert plan["disk_bytes"] - without["disk_bytes"] == tensors + 3 * 2 * trained
    text = clmerge("train", "config.toml", "--dry-run").out
    assert "are 3 snapshots of averages" in text


@pytest.mark.parametrize(
    ("line", "says", "code"),
    [
        (("run",), ("missing option '--half-life'",), 2),
        (("run", "--half-life", "0"), ("--half-life",), 2),
        (("run", "--half-life", "4"), ("no average of this half-life", "of 10", "from 0."), 2),
        (("run", "--half-life", "0.01"), ("no average of this half-life", "steps"), 2),
        (("base", "--half-life", "1"), ("there is no run",), 1),
        (("run", "--half-life", "1", "-o", "run/snapshots"), ("overwrite an input",), 1),
        (("run", "--half-life", "1", "-o", "run"), ("overwrite an input",), 1),
        (("run", "--half-life", "1", "-o", "x.safetensors"), ("a folder", "-o x"), 2),
        (("run", "--half-life", "1", "-o", "cats.jsonl"), ("the output exists",), 1),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_changes(
    here: Path, line: tuple[str, ...], says: tuple[str, ...], code: int
) -> None:
    refused("ema-average", *line, unchanged=here, says=says, code=code)


def test_another_half_life_in_the_same_place_needs_force(here: Path) -> None:
    line = ("ema-average", "run", "--half-life")
    assert clmerge(*line, "1").code == 0
    refused(*line, "0.5", unchanged=here, says=("the output exists", "--force"))
    assert clmerge(*line, "0.5", "--force").code == 0
    made = json.loads(Path("averaged/clmerge/manifest.json").read_text())
    assert made["options"]["half_life"] == 0.5


def test_a_run_without_snapshots_or_unfinished_is_refused_by_name(here: Path) -> None:
    plain = ("train", "config.toml", "--set", "ema.snapshot_every=0", "-o", "plain")
    assert clmerge(*plain).code == 0
    line = ("ema-average", "plain", "--half-life", "1")
    refused(*line, unchanged=here, says=("kept no snapshots", "ema.snapshot_every"))
    record = Path("plain/run.json")
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "state": "unfinished"}))
    refused(*line, unchanged=here, says=("not finished", "clmerge train --resume plain"))


def test_a_model_that_changed_since_the_run_began_is_refused(here: Path) -> None:
    path = here / "base/model.safetensors"
    tensors = load_file(path)
    save_file({name: t * 1.5 for name, t in tensors.items()}, path, {"format": "pt"})
    line = ("ema-average", "run", "--half-life", "1")
    refused(*line, unchanged=here, says=("has changed", str(here / "base")))


def test_damaged_snapshots_are_refused(here: Path) -> None:
    line = ("ema-average", "run", "--half-life", "1")
    path = here / "run/snapshots/00000008.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    refused(*line, unchanged=here, says=("00000008.safetensors",))
    tensors = load_file(here / "run/snapshots/00000004.safetensors")
    save_file(tensors, path)
    refused(*line, unchanged=here, says=("no snapshot of a run's averages", "00000008"))
    path.write_bytes(whole)
    metadata = {"clmerge.snapshot": json.dumps({"format": "clmerge.snapshot/1", "step": 8,
                                                "sigma_rel": [0.05, 0.1]})}  # fmt: skip
    tensors.popitem()
    save_file(tensors, path, metadata)
    refused(*line, unchanged=here, says=("lacks tensors that others have",))
