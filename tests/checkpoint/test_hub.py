"""Models of the hub: fetched once and only as needed, found offline, known by their commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
import torch
from hubs import COMMIT, Hub, serving_hub
from huggingface_hub import constants
from making import (
    CONFIG,
    by_fisher,
    fisher_like,
    fisher_of,
    linear,
    merge,
    model_tensors,
    same_bits,
    weight_bytes,
    write_model,
    write_pickle,
    write_sharded,
    write_sidecar,
)

from mergekit_cl.checkpoint import hub, open_checkpoint
from mergekit_cl.checkpoint.readers import HEAD_BYTES
from mergekit_cl.errors import InputError, OutputError
from mergekit_cl.estimating.place import sidecar_target
from mergekit_cl.merging import OutputOptions, describe_plan, make_plan

OLDER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def cached(cache: Path, repo: str, commit: str, seed: int, ref: str | None = "main") -> Path:
    """A model as huggingface_hub keeps it: blobs by digest, snapshots of links, refs to commits."""
    store = cache / f"models--{repo.replace('/', '--')}"
    source = write_model(cache.parent / f"source{seed}", model_tensors(seed), CONFIG)
    (source / "tokenizer.json").write_text("{}")
    snapshot = store / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (store / "blobs").mkdir(exist_ok=True)
    for path in source.iterdir():
        blob = store / "blobs" / sha1(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (store / "refs").mkdir(exist_ok=True)
        (store / "refs" / ref).write_text(commit)
    return snapshot


def test_a_cached_model_opens_without_a_network(cache: Path) -> None:
    cached(cache, "org/name", COMMIT, 1)
    with open_checkpoint("hf://org/name") as checkpoint:
        assert str(checkpoint.path) == "hf://org/name"
        assert checkpoint.revision == COMMIT
        assert checkpoint.config == CONFIG
        for name, tensor in model_tensors(1).items():
            assert same_bits(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize("typed", [COMMIT, "v1", OLDER])
def test_a_revision_is_a_branch_a_tag_or_a_commit(cache: Path, typed: str) -> None:
    cached(cache, "org/name", OLDER, 2)
    cached(cache, "org/name", COMMIT, 1, "v1")
    with open_checkpoint(f"hf://org/name@{typed}") as checkpoint:
        assert checkpoint.revision == (OLDER if typed == OLDER else COMMIT)
        expected = model_tensors(2 if typed == OLDER else 1)
        assert same_bits(checkpoint.tensor("lm_head.weight"), expected["lm_head.weight"])


def test_a_merge_from_the_hub_gives_the_bytes_of_a_local_one_and_records_the_commits(
    tmp_path: Path, cache: Path
) -> None:
    snapshots = [cached(cache, f"org/m{k}", f"{k}" * 40, k) for k in range(2)]
    before = sorted(cache.rglob("*"))
    named: list[Any] = ["hf://org/m0", "hf://org/m1@main"]
    merge(linear(named), tmp_path / "hub-merge")
    merge(linear(snapshots), tmp_path / "local")
    assert weight_bytes(tmp_path / "hub-merge") == weight_bytes(tmp_path / "local")
    assert (tmp_path / "hub-merge/tokenizer.json").is_file()
    inputs = json.loads((tmp_path / "hub-merge/clmerge/manifest.json").read_text())["inputs"]
    assert [(i["path"], i["revision"]) for i in inputs] == [
        ("hf://org/m0", "0" * 40),
        ("hf://org/m1@main", "1" * 40),
    ]
    assert sorted(cache.rglob("*")) == before


def test_a_sidecar_in_the_repository_is_found(tmp_path: Path, cache: Path) -> None:
    snapshot = cached(cache, "org/name", COMMIT, 1)
    write_sidecar(snapshot, fisher_like(model_tensors(1), 1))
    named: list[Any] = ["hf://org/name", "hf://org/name"]
    assert merge(by_fisher(named), tmp_path / "out").state == "published"


def test_a_sidecar_is_never_written_into_the_cache(tmp_path: Path, cache: Path) -> None:
    cached(cache, "org/name", COMMIT, 1)
    with open_checkpoint("hf://org/name") as checkpoint:
        with pytest.raises(OutputError) as caught:
            sidecar_target(checkpoint, None)
        assert "clmerge fisher hf://org/name --data ... -o" in (caught.value.hint or "")
        assert sidecar_target(checkpoint, tmp_path / "x.safetensors") == tmp_path / "x.safetensors"


def told(text: str) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(text)
    error = caught.value
    assert "\n" not in f"{error.message}{error.detail}{error.hint}"
    return f"{error.message} | {error.detail} | {error.hint}"


def test_a_model_that_is_not_in_the_cache_is_said(cache: Path) -> None:
    assert "hf download org/name --revision v2" in told("hf://org/name@v2")


def test_a_cache_without_the_weights_is_said(cache: Path) -> None:
    snapshot = cached(cache, "org/name", COMMIT, 1)
    (snapshot / "model.safetensors").unlink()
    assert "no checkpoint" in told("hf://org/name")


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://a/b/c",
        "hf://org/na me",
        "hf://org/name@",
        "hf://../x",
        "hf://a--b/..",
        "hf://@main",
    ],
)
def test_what_is_no_name_is_said(cache: Path, text: str) -> None:
    assert "no name of a model" in told(text)


def test_one_format_of_the_top_folder_is_needed() -> None:
    listed = [
        ".gitattributes", "README.md", "config.json", "model.safetensors", "pytorch_model.bin",
        "tokenizer.json", "tf_model.h5", "onnx/model.onnx", "onnx/config.json", "vocab.txt",
        "original/consolidated.00.pth", "model.fp16.safetensors", "clmerge/fisher.safetensors",
        "flax_model.msgpack", "modeling_x.py", "LICENSE", "training_args.bin",
    ]  # fmt: skip
    assert sorted(hub.needed(listed)) == [
        "LICENSE", "README.md", "clmerge/fisher.safetensors", "config.json", "model.safetensors",
        "modeling_x.py", "tokenizer.json", "vocab.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("index", "shard", "other"),
    [
        ("model.safetensors.index.json", "model-{}-of-00002.safetensors", "pytorch_model.bin"),
        ("pytorch_model.bin.index.json", "pytorch_model-{}-of-00002.bin", "training_args.bin"),
    ],
)
def test_shards_are_needed_with_their_index(index: str, shard: str, other: str) -> None:
    shards = [shard.format("00001"), shard.format("00002")]
    assert sorted(hub.needed([index, *shards, other, "model-x.safetensors"])) == sorted(
        [index, *shards]
    )


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is asked instead of the real one, and an empty cache."""
    with serving_hub() as state:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            state.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield state


def repository(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_model_is_fetched_once_and_without_what_a_merge_does_not_need(
    tmp_path: Path, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(model_tensors(1))
    tensors = model_tensors(1)
    folder = write_sharded(
        tmp_path / "m", [{n: tensors[n] for n in names[:3]}, {n: tensors[n] for n in names[3:]}]
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"x")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    online.models["org/name"] = repository(folder)
    for _ in range(2):
        with open_checkpoint("hf://org/name") as checkpoint:
            assert checkpoint.revision == COMMIT
            assert same_bits(checkpoint.tensor(names[0]), tensors[names[0]])
        assert sorted(online.files) == [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
    # Once fetched, it needs no hub any more: neither one that is down, nor any network at all.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with open_checkpoint("hf://org/name") as checkpoint:
        assert checkpoint.revision == COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with open_checkpoint("hf://org/name") as checkpoint:
        assert checkpoint.revision == COMMIT


def test_a_plan_reads_headers_and_leaves_the_weights_on_the_hub(
    tmp_path: Path, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for k in range(2):
        tensors = {**model_tensors(k), "long": torch.ones(2**19) * k}
        folders.append(write_model(tmp_path / f"m{k}", tensors, CONFIG))
        write_sidecar(folders[-1], fisher_like(tensors, k))
        online.models[f"org/m{k}"] = repository(folders[-1])
    named = ["hf://org/m0", "hf://org/m1@main"]
    plans = []
    for inputs in (named, list(map(str, folders))):
        opened = [open_checkpoint(path, headers_only=True) for path in inputs]
        method = fisher_of(opened)
        options = OutputOptions(target=tmp_path / "out")
        plans.append(describe_plan(method, make_plan(method, options), options))
        if inputs == named:
            assert [one.revision for one in opened] == [COMMIT, COMMIT]
            with pytest.raises(InputError):
                open_checkpoint("hf://org/m0@typo", headers_only=True)
    for one in plans:  # places beyond this disk are read through buffers
        del one["buffer_bytes"]
    assert plans[0] == plans[1]
    assert not [name for name in online.files if name.endswith(".safetensors")]
    weights = [one for one in online.ranges if one[0].endswith(".safetensors")]
    assert {begin for _, begin, _ in weights} == {0}
    assert all(end <= HEAD_BYTES for _, _, end in weights)
    # A merge fetches them; from then on a plan asks the cache.
    with open_checkpoint(named[0]) as whole:
        assert same_bits(whole.tensor("long"), torch.zeros(2**19))
    before = len(online.ranges)
    with open_checkpoint(named[0], headers_only=True) as held:
        assert held.here is None
        assert held.file_of("long").is_file()
    assert len(online.ranges) == before


def test_torch_files_of_the_hub_are_fetched_even_for_a_plan(tmp_path: Path, online: Hub) -> None:
    write_pickle(tmp_path / "pytorch_model.bin", dict(model_tensors(0)))
    online.models["org/name"] = {
        "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
        "config.json": json.dumps(CONFIG).encode(),
    }
    with open_checkpoint("hf://org/name", headers_only=True) as checkpoint:
        assert checkpoint.tensors.keys() == model_tensors(0).keys()
    assert "pytorch_model.bin" in online.files


def test_what_the_hub_refuses_is_said(online: Hub, tmp_path: Path) -> None:
    online.models["org/name"] = repository(write_model(tmp_path / "m", model_tensors(1)))
    online.gated.add("org/gated")
    assert "no such model, or it is private" in told("hf://org/typo")
    assert "no such revision" in told("hf://org/name@typo")
    assert "gated" in told("hf://org/gated")
    assert "hf auth login" in told("hf://org/gated")


def test_a_hub_that_cannot_be_reached_is_said(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in told("hf://org/name")


def test_a_hub_is_quiet_where_nobody_watches(
    online: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    online.models["org/name"] = repository(write_model(tmp_path / "m", model_tensors(1)))
    open_checkpoint("hf://org/name").close()
    assert capfd.readouterr() == ("", "")


def test_the_environment_of_the_hub_is_honoured(tmp_path: Path, cache: Path) -> None:
    cached(cache, "org/name", COMMIT, 1)
    (tmp_path / "home").mkdir()
    cache.rename(tmp_path / "home/hub")
    run = subprocess.run(
        [sys.executable, "-m", "mergekit_cl", "linear-merge", "hf://org/name", "hf://org/name",
         "-o", str(tmp_path / "out"), "--no-report"],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = weight_bytes(tmp_path / "source1")
    assert weight_bytes(tmp_path / "out") == expected
