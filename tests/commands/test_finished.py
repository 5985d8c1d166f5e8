"""Finished runs: said to be up to date, the same in every fresh directory, planned beforehand."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.checkpoint import Checkpoint
from tests.commands.checkpoints import sidecar, weights
from tests.commands.running import clmerge, process, refused
from tests.commands.trees import same_but_for_cost, snapshot

pytestmark = pytest.mark.usefixtures("whole_pages")  # a process makes them

MERGES = ["linear-merge", "fisher-merge"]


@pytest.mark.parametrize("command", MERGES)
@pytest.mark.parametrize("output", ["merged", "merged.safetensors"])
def test_a_finished_command_given_again_is_up_to_date(
    place: Path, command: str, output: str
) -> None:
    line = (command, "a", "b", "-o", output)
    assert clmerge(*line).code == 0
    done = snapshot(place)
    again = clmerge(*line)
    assert (again.code, again.out, again.err) == (0, "", f"{output} is up to date\n")
    assert snapshot(place) == done
    document = clmerge(*line, "--json").document
    made = json.loads(next(place.glob("merged*/**/manifest.json")).read_text())
    assert document["state"] == "up to date"
    assert document["weights_digest"] == made["outputs"][0]["weights_digest"]
    assert document["verdict"] == made["verdict"]
    assert clmerge(*line, "--threads", "3", "--device", "cpu").err.endswith("is up to date\n")


@pytest.mark.parametrize(
    "change",
    ["--weights 1,3", "--dtype bfloat16", "--shard-size 600", "--no-report", "--exclude *norm*"],
)
def test_other_options_are_another_merge(place: Path, change: str) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    says = ("the output exists", "--force")
    refused("linear-merge", "a", "b", *change.split(), unchanged=place, says=says)


@pytest.mark.parametrize(
    "change",
    ["--normalize l2", "--floor 0.5", "--fallback first", "--on-missing-fisher linear"],
)
def test_other_fisher_options_are_another_merge(place: Path, change: str) -> None:
    assert clmerge("fisher-merge", "a", "b").code == 0
    says = ("the output exists", "--force")
    refused("fisher-merge", "a", "b", *change.split(), unchanged=place, says=says)


def test_inputs_in_another_order_are_another_merge(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "--weights", "1,3").code == 0
    refused("linear-merge", "b", "a", "--weights", "1,3", unchanged=place, says=("--force",))


def test_a_model_retrained_in_its_place_is_noticed_whatever_its_size_and_time(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    file = place / "b" / "model.safetensors"
    times = file.stat()
    save_file(weights(3), file, metadata={"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    sidecar(place / "b", 2)
    refused("linear-merge", "a", "b", unchanged=place, says=("the output exists", "--force"))
    assert clmerge("linear-merge", "a", "b", "--force").code == 0
    assert clmerge("linear-merge", "a", "b").err == "merged is up to date\n"


def test_a_new_sidecar_is_noticed(place: Path) -> None:
    assert clmerge("fisher-merge", "a", "b").code == 0
    sidecar(place / "b", 77)
    refused("fisher-merge", "a", "b", unchanged=place, says=("the output exists", "--force"))


def test_a_damaged_output_is_not_up_to_date(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    file = place / "merged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused("linear-merge", "a", "b", unchanged=place, says=("the output exists", "--force"))
    file.unlink()
    refused("linear-merge", "a", "b", unchanged=place, says=("the output exists", "--force"))


@pytest.mark.parametrize("command", MERGES)
def test_two_runs_in_two_fresh_directories_give_the_same_bytes(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fresh in ("one", "two"):
        (place / fresh).mkdir()
        for name in ("a", "b"):
            shutil.copytree(place / name, place / fresh / name)
    first = process(command, "a", "b", cwd=place / "one", PYTHONHASHSEED="1")
    assert first.code == 0
    monkeypatch.chdir(place / "two")
    assert clmerge(command, "a", "b", "--threads", "3").code == 0
    assert same_but_for_cost(place / "one", place / "two")
    manifests = [
        json.loads((place / fresh / "merged/clmerge/manifest.json").read_text())
        for fresh in ("one", "two")
    ]
    for made in manifests:
        del made["seconds"], made["peak_memory_bytes"]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("command", MERGES)
@pytest.mark.parametrize("more", [(), ("--shard-size", "600"), ("-o", "out.safetensors")])
def test_dry_run_tells_the_plan_from_headers_and_writes_nothing(
    place: Path, command: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a plan reads headers only")

    before = snapshot(place)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", never)
        plan = clmerge(command, "a", "b", *more, "--dry-run", "--json")
        told = clmerge(command, "a", "b", *more, "--dry-run")
    assert (plan.code, told.code, told.err) == (0, 0, "")
    assert snapshot(place) == before
    document = plan.document
    assert document["tensors"] == {"merged": 4, "copied": 0}
    weights_bytes = sum(tensor.nbytes for tensor in weights(0).values())
    assert document["bytes_read"] == weights_bytes * 4  # weights and Fisher of both
    assert document["buffer_bytes"] > 0
    assert told.out.startswith(f"{command} into {document['output']}: 4 tensors merged, 0 copied")

    assert clmerge(command, "a", "b", *more).code == 0
    written = [path for path in snapshot(place) if path not in before]
    files = sorted(Path(path) for path in written if path.endswith(".safetensors"))
    assert sum(path.stat().st_size for path in files) == document["bytes_written"]
    if more[:1] != ("-o",):
        assert [path.name for path in files] == document["files"]


def test_dry_run_refuses_what_the_merge_would_refuse(place: Path) -> None:
    save_file({"w": torch.zeros(2)}, place / "b" / "model.safetensors")
    line = ("linear-merge", "a", "b", "--no-report", "--dry-run")
    refused(*line, unchanged=place, says=("the inputs differ in 5 tensors",))
    refused("linear-merge", "a", "a", "-o", "a", "--dry-run", unchanged=place, says=("overwrite",))


def test_outputs_hold_what_they_say(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "--shard-size", "600").code == 0
    index = json.loads((place / "merged/model.safetensors.index.json").read_text())
    held = {
        name: file.name
        for file in (place / "merged").glob("*.safetensors")
        for name in load_file(file)
    }
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights(0).values())
