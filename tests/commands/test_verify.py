"""`clmerge verify`: everything that differs is named, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from making import raw_safetensors
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import (
    SHAPES,
    checkpoint,
    sharded,
    sidecar,
    tensor_digest,
    weights,
)
from tests.commands.running import clmerge, start
from tests.commands.trees import snapshot
from tests.commands.verifications import differences, flip, save
from tests.pages import quoted, section, table

FIRST, SECOND, THIRD, LAST = SHAPES


@pytest.fixture
def merged(place: Path) -> Path:
    """A merge of a and b in one file."""
    assert clmerge("linear-merge", "a", "b", "-q").code == 0
    return place / "merged"


@pytest.fixture
def shards(place: Path) -> Path:
    """The same in one file per tensor."""
    assert clmerge("linear-merge", "a", "b", "-q", "-o", "shards", "--shard-size", "1B").code == 0
    assert len(list((place / "shards").glob("*.safetensors"))) == len(SHAPES)
    return place / "shards"


def whole_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """weights_digest of float32 tensors, as interface.md defines it."""
    lines = sorted(
        json.dumps([name, "F32", list(t.shape), tensor_digest(t)], separators=(",", ":"))
        for name, t in tensors.items()
    )
    return blake3("\n".join(lines).encode()).hexdigest()


# Nothing differs


@pytest.mark.parametrize("how", ["merged", "shards"])
def test_a_merge_is_what_it_was_written(how: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(how)
    before = snapshot(folder)
    result = clmerge("verify", folder)
    assert (result.code, snapshot(folder)) == (0, before)
    assert f"{folder} is what clmerge linear-merge wrote: 4 tensors" in result.out
    document = clmerge("verify", folder, "--json").document
    tensors = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    assert document["weights_digest"] == whole_digest(tensors)
    assert document["weights_digest"] in result.out
    assert (document["state"], document["differences"]) == ("intact", [])
    assert (document["tensors"], document["bytes"]) == (4, sum(t.nbytes for t in tensors.values()))


def test_the_document_has_the_documented_keys_and_kinds(merged: Path) -> None:
    cell = table(section("commands.md", "JSON on stdout"), "of")["`verify`"]
    keys = quoted(re.sub(r"\([^)]*\)", "", cell))
    flip(merged / "model.safetensors", FIRST)
    document = clmerge("verify", merged, "--json").document
    assert sorted(keys) == sorted(document)
    inner = re.findall(r"\w+", re.findall(r"\[\{(.*?)\}\]", cell)[0])
    assert all(sorted(inner) == sorted(difference) for difference in document["differences"])
    from mergekit_cl.report.verify import LABELS

    documented = table(section("commands.md", "clmerge verify"), "difference")
    assert sorted(kind for cell in documented for kind in quoted(cell)) == sorted(LABELS)


def test_a_single_file_is_checked_by_the_manifest_in_its_own_side_folder(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "-q", "-o", "x.safetensors").code == 0
    assert clmerge("verify", "x.safetensors").code == 0
    flip(place / "x.safetensors", LAST)
    assert differences(Path("x.safetensors")) == {"changed": [LAST], "weights_digest": [""]}


def test_a_model_without_manifest_is_checked_by_its_sidecar(place: Path) -> None:
    result = clmerge("verify", "a")
    assert result.code == 0
    assert "a is what was recorded" in result.out
    assert "a/clmerge/fisher.safetensors was taken at these weights" in result.out
    assert clmerge("verify", "a", "--json").document["made_by"] is None


def test_a_torch_file_is_checked_by_its_sidecar(place: Path) -> None:
    torch.save(load_file("a/model.safetensors"), "w.bin")
    Path("w.clmerge").mkdir()
    Path("a/clmerge/fisher.safetensors").rename("w.clmerge/fisher.safetensors")
    assert clmerge("verify", "w.bin").code == 0
    torch.save(load_file("b/model.safetensors"), "w.bin")
    assert set(differences(Path("w.bin"))["fisher_stale"]) == set(SHAPES)


@pytest.mark.parametrize("threads", ["1", "2", "9"])
def test_the_number_of_threads_changes_nothing(shards: Path, threads: str) -> None:
    flip(shards / "model-00003-of-00004.safetensors", THIRD)
    one, other = (
        clmerge("verify", shards, "--json", *more).document for more in ((), ("--threads", threads))
    )
    for cost in ("seconds", "bytes_per_second"):
        del one[cost], other[cost]
    assert one == other


# Tensors


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("how", ["merged", "shards"])
def test_one_bit_of_any_tensor_is_found_and_named(
    how: str, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(how)
    files = sorted(folder.glob("*.safetensors"))
    flip(next(f for f in files if name in load_file(f)), name)
    assert differences(folder) == {"changed": [name], "weights_digest": [""]}
    shown = clmerge("verify", folder)
    assert (shown.code, "Traceback" in shown.err) == (10, False)
    assert f"{folder} is not what clmerge linear-merge wrote: 2 differences" in shown.out
    assert f"changed tensor        {name}" in shown.out
    assert not any(other in shown.out for other in SHAPES if other != name)


def test_missing_and_added_tensors_are_named(merged: Path) -> None:
    tensors = load_file(merged / "model.safetensors")
    del tensors[SECOND]
    save(merged, {**tensors, "extra.weight": torch.ones(3)})
    found = differences(merged)
    assert (found["missing"], found["added"]) == ([SECOND], ["extra.weight"])
    assert "changed" not in found
    assert found["file_header"] == ["model.safetensors"]


def test_another_dtype_and_another_shape_are_named_with_both_values(merged: Path) -> None:
    tensors = load_file(merged / "model.safetensors")
    tensors[FIRST] = tensors[FIRST].to(torch.bfloat16)
    tensors[LAST] = tensors[LAST].reshape(4, 2)
    save(merged, tensors)
    found = differences(merged)
    assert (found["dtype"], found["shape"]) == ([FIRST], [LAST])
    assert found["changed"] == [FIRST]  # the same bytes in another shape have the same digest
    shown = clmerge("verify", merged).out
    assert f"{FIRST}: F32 recorded, BF16 found" in shown
    assert f"{LAST}: [8] recorded, [4, 2] found" in shown


def test_a_manifest_that_contradicts_itself_is_noticed(merged: Path) -> None:
    manifest = merged / "clmerge" / "manifest.json"
    made = json.loads(manifest.read_text())
    made["outputs"][0]["weights_digest"] = "0" * 64
    manifest.write_text(json.dumps(made))
    assert differences(merged) == {"weights_digest": [""]}


def test_many_differences_are_counted_for_people_and_listed_for_programs(place: Path) -> None:
    many = {f"w{k:03d}": torch.full((2,), float(k)) for k in range(50)}
    for name in ("c", "d"):
        checkpoint(place / name, many)
    assert clmerge("linear-merge", "c", "d", "-q", "--no-report").code == 0
    save(place / "merged", {name: tensor + 1 for name, tensor in many.items()})
    shown = clmerge("verify", "merged").out
    assert shown.count("\n") < 30
    assert "and 30 more" in shown
    assert differences(place / "merged")["changed"] == list(many)


# Files


def test_weights_in_other_files_are_the_same_weights(shards: Path, place: Path) -> None:
    tensors = {n: t for f in shards.glob("*.safetensors") for n, t in load_file(f).items()}
    side = shards / "clmerge"
    files = dict.fromkeys(SHAPES, "all.safetensors")
    sharded(place / "again", tensors, files)
    side.rename(place / "again" / "clmerge")
    found = differences(place / "again")
    assert set(found) == {"file_missing", "file_added"}
    assert len(found["file_missing"]) == 4
    assert "every tensor that could be read is as recorded" in clmerge("verify", "again").out


def test_metadata_in_a_header_is_a_difference_of_the_file(merged: Path) -> None:
    save(merged, load_file(merged / "model.safetensors"), note="x")
    assert set(differences(merged)) == {"file_size", "file_header"}


def test_a_truncated_shard_does_not_hide_what_happened_to_another(shards: Path) -> None:
    names = {next(iter(load_file(f))): f for f in shards.glob("*.safetensors")}
    os.truncate(names[SECOND], names[SECOND].stat().st_size - 1)
    flip(names[LAST], LAST)
    assert differences(shards) == {
        "file_size": [names[SECOND].name],
        "file_unreadable": [names[SECOND].name],
        "missing": [SECOND],
        "changed": [LAST],
    }
    assert "the file is truncated" in clmerge("verify", shards).out
    assert clmerge("verify", shards, "--json").document["weights_digest"] is None


def test_a_missing_shard_is_named_with_its_tensors(shards: Path) -> None:
    names = {next(iter(load_file(f))): f for f in shards.glob("*.safetensors")}
    names[THIRD].unlink()
    assert differences(shards) == {"file_missing": [names[THIRD].name], "missing": [THIRD]}


def test_a_truncated_single_file_is_a_difference(merged: Path) -> None:
    os.truncate(merged / "model.safetensors", 100)
    found = differences(merged)
    assert found["file_size"] == found["file_unreadable"] == ["model.safetensors"]
    assert set(found["missing"]) == set(SHAPES)


def test_a_broken_index_is_told_and_the_files_are_checked_all_the_same(shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text("{")
    flip(shards / "model-00001-of-00004.safetensors", FIRST)
    assert differences(shards) == {"file_unreadable": ["shards"], "changed": [FIRST]}
    assert "the index is not JSON" in clmerge("verify", shards).out


# Sidecars


def test_a_fisher_of_other_weights_is_named_tensor_by_tensor(place: Path) -> None:
    flip(place / "a/model.safetensors", THIRD)
    assert differences(Path("a")) == {"fisher_stale": [THIRD]}
    assert f"Fisher of other weights  {THIRD}" in clmerge("verify", "a").out


def test_weights_without_fisher_are_covered_by_the_digest_of_the_whole(place: Path) -> None:
    checkpoint(place / "c", 3)
    digest = whole_digest(weights(3))
    sidecar(place / "c", leave_out={FIRST: "frozen"}, weights_digest=digest)
    assert clmerge("verify", "c").code == 0
    flip(place / "c/model.safetensors", FIRST)
    assert differences(Path("c")) == {"fisher_weights_digest": ["fisher.safetensors"]}


def test_a_tensor_that_only_the_sidecar_knows_is_named(place: Path) -> None:
    tensors = load_file(place / "a/model.safetensors")
    del tensors[SECOND]
    save(place / "a", tensors)
    assert differences(Path("a")) == {"fisher_stale": [SECOND]}


def test_a_stale_sidecar_beside_an_intact_merge_is_a_difference(merged: Path) -> None:
    sidecar(merged)
    assert clmerge("verify", merged).code == 0
    Path("a/clmerge/fisher.safetensors").replace(merged / "clmerge/fisher.safetensors")
    assert set(differences(merged)) == {"fisher_stale"}


def test_an_unreadable_sidecar_is_a_difference_beside_a_manifest(merged: Path) -> None:
    (merged / "clmerge" / "fisher.safetensors").write_bytes(b"rubbish")
    assert differences(merged) == {"fisher_unreadable": ["fisher.safetensors"]}


# Streams


def test_the_result_is_on_stdout_and_what_it_took_on_stderr(merged: Path) -> None:
    result = clmerge("verify", merged)
    assert "B/s" in result.err
    quiet = clmerge("verify", merged, "--quiet")
    assert (quiet.out, quiet.err) == (result.out, "")
    as_json = clmerge("verify", merged, "--quiet", "--json")
    assert (as_json.out.count("\n"), as_json.err) == (1, "")


def test_safetensors_are_verified_without_torch(merged: Path) -> None:
    script = (
        "import sys, mergekit_cl.cli as frame\n"
        "try:\n    frame.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    print(end.code, *(m for m in ('torch', 'numpy', 'transformers') if m in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, "verify", str(merged)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "0"


def huge(folder: Path, size: int) -> Path:
    """A checkpoint of one tensor of zeros that takes no room, and a sidecar that knows it."""
    folder.mkdir()
    header: dict[str, Any] = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    head = raw_safetensors(header)
    path = folder / "model.safetensors"
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    said = {"format": "clmerge.fisher/1", "estimator": "mc", "unit": "per_example"}
    tensors = {"w": {"digest": "0" * 64}}
    metadata = {**said, "level": "sequence", "examples": 1, "tensors": tensors}
    (folder / "clmerge").mkdir()
    save_file(
        {"w": torch.ones(1)},
        folder / "clmerge/fisher.safetensors",
        metadata={"clmerge.fisher": json.dumps(metadata)},
    )
    return folder


def test_it_can_be_interrupted(tmp_path: Path) -> None:
    folder = huge(tmp_path / "huge", 2**38)  # a minute and more of reading
    running = start("verify", folder)
    assert running.stderr is not None
    assert running.stderr.readline().startswith("verify: ")  # a line of progress: it is at work
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
