"""Outputs beyond the disk: made here, uploaded with the manifest last, replaced only when ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tests.commands.checkpoints import SHAPES, checkpoint, weights
from tests.commands.running import clmerge, failure_lines
from tests.commands.trees import snapshot

OUT = "memory://out/model"


@pytest.fixture
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where outputs wait for their upload; checkpoints a and b lie in the working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    MemoryFileSystem.store.clear()
    yield place / "cache/clmerge/uploads"
    MemoryFileSystem.store.clear()


def far(prefix: str = "/out/model") -> dict[str, bytes]:
    """The files that lie at a place, by their relative path."""
    return {
        name[len(prefix) + 1 :]: file.getvalue()
        for name, file in MemoryFileSystem.store.items()
        if name.startswith(prefix + "/")
    }


def merge(*more: str, out: str = OUT) -> Any:
    return clmerge("linear-merge", "a", "b", "-o", out, "--quiet", *more)


class Writes:
    """Every name in the order in which it was written or removed; fails where told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.fails: str | None = None
        put, remove = MemoryFileSystem.put_file, MemoryFileSystem.rm_file

        def watched(fs: Any, source: str, target: str, *rest: Any, **more: Any) -> None:
            if self.fails is not None and self.fails in target:
                raise ConnectionError("https://host/x?sig=HUSH broke")
            self.order.append(target.removeprefix("/out/model/"))
            put(fs, source, target, *rest, **more)

        def removed(fs: Any, path: str) -> None:
            self.order.append(f"-{path.removeprefix('/out/model/')}")
            remove(fs, path)

        monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
        monkeypatch.setattr(MemoryFileSystem, "rm_file", removed)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def plain(files: dict[str, bytes]) -> dict[str, Any]:
    """Files with the manifest's place and cost taken out."""
    made: dict[str, Any] = dict(files)
    manifest = json.loads(files["clmerge/manifest.json"])
    del manifest["seconds"], manifest["peak_memory_bytes"], manifest["outputs"][0]["path"]
    made["clmerge/manifest.json"] = manifest
    return made


def test_what_arrives_is_what_a_local_merge_makes(cache: Path) -> None:
    assert merge("--shard-size", "600").code == 0
    assert merge("--shard-size", "600", out="here").code == 0
    local = {k.removeprefix("here/"): v for k, v in snapshot(Path("here")).items() if v is not None}
    assert plain(far()) == plain(local)
    assert json.loads(far()["clmerge/manifest.json"])["outputs"][0]["path"] == OUT
    assert len([name for name in far() if name.endswith(".safetensors")]) > 1
    assert not list(cache.parent.rglob("*.*"))


def test_the_index_follows_the_weights_and_the_manifest_is_last(
    cache: Path, writes: Writes
) -> None:
    merge("--shard-size", "600")
    mark = "clmerge/unfinished.json"
    assert writes.order[0] == mark
    assert writes.order[-2:] == ["clmerge/manifest.json", f"-{mark}"]
    index = writes.order.index("model.safetensors.index.json")
    shards = [k for k, name in enumerate(writes.order) if name.endswith("of-00003.safetensors")]
    assert max(shards) < index < len(writes.order) - 2


def test_a_finished_output_is_up_to_date(cache: Path, writes: Writes) -> None:
    merge()
    writes.order.clear()
    assert merge("--json").document["state"] == "up to date"
    assert writes.order == []
    assert not list(cache.parent.rglob("*.*"))


def test_another_merge_needs_force_and_leaves_nothing_of_the_old_one(cache: Path) -> None:
    merge("--shard-size", "600")
    before = far()
    result = merge("--weights", "0.25,0.75")
    assert result.code == 1
    assert "--force" in failure_lines(result)[-1]
    assert far() == before
    assert merge("--weights", "0.25,0.75", "--force").code == 0
    assert merge("--weights", "0.25,0.75", out="here").code == 0
    local = {k.removeprefix("here/"): v for k, v in snapshot(Path("here")).items() if v is not None}
    assert plain(far()) == plain(local)


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "clmerge/manifest.json"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_others_made_is_never_replaced(cache: Path, name: str, force: list[str]) -> None:
    MemoryFileSystem().pipe_file(f"/out/model/{name}", b"{}")
    result = merge(*force)
    assert result.code == 1
    assert OUT in failure_lines(result)[1]
    assert far() == {name: b"{}"}


def test_an_upload_that_fails_waits_and_the_same_command_goes_on(
    cache: Path, writes: Writes
) -> None:
    writes.fails = "model-00002"
    result = merge("--shard-size", "600")
    assert result.code == 1
    lines = failure_lines(result)
    assert len(lines) == 3
    assert OUT in lines[1]
    assert str(cache) in lines[2]
    assert "HUSH" not in result.err
    assert "clmerge/manifest.json" not in far()
    assert "model.safetensors.index.json" not in far()
    writes.fails = None
    assert merge("--shard-size", "600").code == 0
    assert "clmerge/manifest.json" in far()
    assert "clmerge/unfinished.json" not in far()
    assert not list(cache.parent.rglob("*.*"))


def test_a_place_that_cannot_be_written_is_known_before_the_merge(
    cache: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes.fails = "unfinished"
    monkeypatch.setattr("mergekit_cl.remote_merge.run_merge", lambda *_: pytest.fail("it merged"))
    assert "uploaded" in merge().err
    assert far() == {}


def test_bad_input_leaves_no_trace_anywhere(cache: Path) -> None:
    checkpoint(Path("nan"), {**weights(3), "model.norm.weight": torch.full((8,), float("nan"))})
    result = clmerge("linear-merge", "a", "nan", "-o", OUT)
    assert result.code == 1
    assert far() == {}
    assert not list(cache.parent.rglob("*.*"))
    assert not cache.exists() or not list(cache.iterdir())


def test_a_lossy_merge_is_not_uploaded_under_strict(cache: Path) -> None:
    ones = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    checkpoint(Path("x"), ones)
    checkpoint(Path("y"), {name: tensor + 2**-7 for name, tensor in ones.items()})
    line = ("linear-merge", "x", "y", "--weights", "9,1", "-o", OUT, "--strict", "--quiet")
    assert clmerge(*line).code == 10
    assert far() == {}
    assert not cache.exists() or not list(cache.iterdir())
    assert clmerge(*line, "--publish-anyway").code == 10
    assert "clmerge/manifest.json" in far()


def test_a_single_file_goes_with_its_side_folder(cache: Path) -> None:
    assert merge(out="memory://out/model/x.safetensors").code == 0
    assert set(far()) == {
        "x.safetensors",
        "x.clmerge/manifest.json",
        "x.clmerge/divergence.json",
        "x.clmerge/report.html",
    }
    assert merge("--json", out="memory://out/model/x.safetensors").document["state"] == "up to date"
    assert merge("--weights", "1,2", out="memory://out/model/x.safetensors").code == 1
    assert merge("--weights", "1,2", "--force", out="memory://out/model/x.safetensors").code == 0


def test_what_was_uploaded_can_be_merged_again(cache: Path) -> None:
    merge()
    assert clmerge("linear-merge", OUT, "a", "-o", "again", "--quiet").code == 0
    assert clmerge("verify", OUT).code == 0


@pytest.mark.parametrize("out", [OUT, f"{OUT}/inside", "memory://out"])
def test_an_output_apart_from_its_inputs_only(cache: Path, out: str) -> None:
    merge()
    before = far()
    result = clmerge("linear-merge", OUT, "a", "-o", out, "--force")
    assert result.code == 1
    assert "overwrite an input" in result.err
    assert far() == before


def test_a_plan_names_the_place_and_touches_nothing(cache: Path, writes: Writes) -> None:
    plan = merge("--dry-run", "--json").document
    assert plan["output"] == OUT
    assert writes.order == []
    assert not cache.exists()


@pytest.mark.parametrize("out", ["hf://org/name", "https://127.0.0.1:9/x", "nosuch://x/y"])
def test_where_nothing_can_be_written_is_said(cache: Path, out: str) -> None:
    result = merge(out=out)
    assert result.code == 1
    assert "try: " in result.err


def test_a_file_url_is_a_path(cache: Path, place: Path) -> None:
    assert merge(out=f"file://{place}/local").code == 0
    assert (place / "local/model.safetensors").is_file()


def test_a_sidecar_is_written_to_this_disk(cache: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "some words"}\n')
    result = clmerge("fisher", "a", "--data", "rows.jsonl", "-o", "memory://out/f.safetensors")
    assert result.code == 2
    assert "this disk" in result.err
    assert not Path("memory:").exists()
