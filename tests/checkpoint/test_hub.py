"""Models of the hub: fetched once and only as needed, found offline, known by their commit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from making import (
    CONFIG,
    by_fisher,
    fisher_like,
    linear,
    merge,
    model_tensors,
    same_bits,
    weight_bytes,
    write_model,
    write_sharded,
    write_sidecar,
)

from mergekit_cl.checkpoint import hub, open_checkpoint
from mergekit_cl.errors import InputError, OutputError
from mergekit_cl.estimating.place import sidecar_target

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


@dataclass
class Hub:
    """What a hub knows: {repository: {file: content}}, and what it was asked for."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that speaks as much of the hub's protocol as fetching a model needs."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
                self.model(found[1], lambda files: {
                    "id": found[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files],
                }, found[2])  # fmt: skip
            elif found := re.fullmatch(r"/api/models/(.+?)/tree/(.+)", path):
                self.model(found[1], lambda files: [
                    {"type": "file", "path": n, "size": len(c), "oid": sha1(c).hexdigest()}
                    for n, c in files.items()
                ], found[2])  # fmt: skip
            elif found := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
                content = state.models[found[1]][found[2]]
                if self.command == "GET":
                    state.files.append(found[2])
                self.send(200, content)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                self.model(found[1], lambda files: {
                    "id": found[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files],
                }, "main")  # fmt: skip
            else:
                self.send(404, b"{}")

        def model(self, repo: str, answer: Any, revision: str) -> None:
            if repo in state.gated:
                self.send(403, b"{}", "GatedRepo")
            elif repo not in state.models:
                self.send(404, b"{}", "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.send(404, b"{}", "RevisionNotFound")
            else:
                self.send(200, json.dumps(answer(state.models[repo])).encode())

        def send(self, status: int, content: bytes, code: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        state.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


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
