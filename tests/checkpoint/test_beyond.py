"""Checkpoints in folders beyond this disk are the checkpoints that were put there."""

from __future__ import annotations

import builtins
import json
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from making import (
    CONFIG,
    Tensors,
    by_fisher,
    files_below,
    fisher_like,
    linear,
    merge,
    model_tensors,
    same_bits,
    weight_bytes,
    write_index,
    write_model,
    write_pickle,
    write_sharded,
    write_sidecar,
)
from servers import FileServer, Request

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import ClmergeError, FormatError, InputError
from mergekit_cl.sidecar import find_sidecar, sidecar_of

TENSORS = model_tensors(0)
NAMES = list(TENSORS)


def upload(folder: Path, url: str) -> str:
    """Put a folder at a URL; gives the URL."""
    fs, path = fsspec.core.url_to_fs(url)
    for name, content in files_below(folder).items():
        fs.pipe_file(f"{path}/{name}", content)
    return url


def shards(folder: Path, tensors: Tensors) -> Path:
    return write_sharded(
        folder, [{n: tensors[n] for n in NAMES[:3]}, {n: tensors[n] for n in NAMES[3:]}]
    )


def pair(folder: Path) -> list[Path]:
    """Two checkpoints with config, tokenizer and Fisher sidecars."""
    made = []
    for k in range(2):
        model = write_model(folder / f"m{k}", model_tensors(k), CONFIG)
        (model / "tokenizer.json").write_text(f'{{"of": {k}}}')
        write_sidecar(model, fisher_like(model_tensors(k), k))
        made.append(model)
    return made


@pytest.mark.parametrize("where", ["memory", "http"])
@pytest.mark.parametrize("how", ["folder", "file", "shards", "index", "slash"])
def test_tensors_from_a_url_are_those_of_the_files(
    tmp_path: Path, server: FileServer, memory: str, where: str, how: str
) -> None:
    folder = tmp_path / "www/m"
    (shards if how in ("shards", "index") else write_model)(folder, TENSORS)
    url = f"{server.url}/m" if where == "http" else upload(folder, f"{memory}/m")
    url += {
        "file": "/model.safetensors",
        "index": "/model.safetensors.index.json",
        "slash": "/",
    }.get(how, "")
    with open_checkpoint(url) as checkpoint, open_checkpoint(folder) as local:
        assert checkpoint.tensors == local.tensors
        assert str(checkpoint.path) == url
        assert checkpoint.here is None
        assert checkpoint.folder == (how not in ("file", "index"))
        for name, tensor in TENSORS.items():
            assert same_bits(checkpoint.tensor(name), tensor)
        assert checkpoint_digests(checkpoint) == checkpoint_digests(local)


@pytest.mark.parametrize("where", ["memory", "http"])
def test_a_merge_of_urls_gives_the_bytes_of_a_local_one(
    tmp_path: Path, server: FileServer, memory: str, where: str
) -> None:
    inputs = pair(tmp_path / "www")
    urls: list[Any] = [f"{server.url}/m{k}" for k in range(2)]
    if where == "memory":
        urls = [upload(inputs[k], f"{memory}/m{k}") for k in range(2)]
    for k, method in enumerate([linear, by_fisher]):
        merge(method(inputs), tmp_path / f"local{k}")
        merge(method(urls), tmp_path / f"far{k}")
        local, far = (files_below(tmp_path / f"{name}{k}") for name in ("local", "far"))
        assert local.keys() == far.keys()
        texts = [files.pop("clmerge/manifest.json").decode() for files in (local, far)]
        reports = [files.pop("clmerge/divergence.json").decode() for files in (local, far)]
        for files in (local, far):  # the card and the page name the inputs as they were given
            del files["README.md"], files["clmerge/report.html"]
        assert local == far
        for number, url in enumerate(urls):
            texts[1] = texts[1].replace(str(url), str(inputs[number]))
            reports[1] = reports[1].replace(str(url), str(inputs[number]))
        made = [json.loads(text) for text in texts]
        for one in made:
            del one["seconds"], one["peak_memory_bytes"], one["outputs"][0]["path"]
        assert made[0] == made[1]
        assert reports[0] == reports[1]


def test_a_merge_of_a_url_with_a_local_model_is_a_merge(tmp_path: Path, memory: str) -> None:
    inputs = pair(tmp_path / "in")
    mixed: list[Any] = [upload(inputs[0], f"{memory}/m0"), inputs[1]]
    merge(linear(mixed), tmp_path / "mixed")
    merge(linear(inputs), tmp_path / "local")
    assert weight_bytes(tmp_path / "mixed") == weight_bytes(tmp_path / "local")


def test_config_and_how_it_was_made_come_along_and_go_when_it_is_closed(
    tmp_path: Path, memory: str, scratch: Path
) -> None:
    first, _ = pair(tmp_path / "in")
    (first / "clmerge/manifest.json").write_text('{"made": "so"}')
    (first / "notes.bin").write_bytes(b"x" * 100)
    with open_checkpoint(upload(first, f"{memory}/m")) as checkpoint:
        assert checkpoint.config == CONFIG
        assert (checkpoint.root / "tokenizer.json").read_text() == '{"of": 0}'
        assert (checkpoint.side_folder / "manifest.json").read_text() == '{"made": "so"}'
        assert not (checkpoint.root / "notes.bin").exists()
        assert not list(checkpoint.root.rglob("*.safetensors"))
    assert not list(scratch.iterdir())


def test_a_sidecar_beside_a_remote_model_is_found_there(
    tmp_path: Path, memory: str, server: FileServer
) -> None:
    model = pair(tmp_path / "www")[0]
    for url in (upload(model, f"{memory}/m"), f"{server.url}/m0"):
        with open_checkpoint(url) as checkpoint:
            sidecar = sidecar_of(checkpoint, None)
            assert str(sidecar.checkpoint.path) == f"{url}/clmerge/fisher.safetensors"
            assert sidecar.checkpoint.tensors.keys() == fisher_like(TENSORS, 0).keys()
            sidecar.checkpoint.close()


def test_a_remote_model_without_a_sidecar_says_how_to_make_one(tmp_path: Path, memory: str) -> None:
    url = upload(write_model(tmp_path / "m", TENSORS), f"{memory}/m")
    with open_checkpoint(url) as checkpoint:
        assert find_sidecar(checkpoint) is None
        with pytest.raises(InputError) as caught:
            sidecar_of(checkpoint, None)
    assert f"{url}/clmerge/fisher.safetensors" in (caught.value.detail or "")
    assert "-o " in (caught.value.hint or "")


def test_only_what_is_needed_is_transferred(tmp_path: Path, server: FileServer) -> None:
    model = write_model(tmp_path / "www/m", {"w": torch.randn(200_000), "v": torch.randn(7)})
    (model / "pytorch_model.bin").write_bytes(bytes(10**6))
    with open_checkpoint(f"{server.url}/m") as checkpoint:
        assert server.sent < 2**18 + 10_000  # the header's neighbourhood
        for start in range(0, 200_000, 2**17):
            checkpoint.read("w", start, min(start + 2**17, 200_000))
        checkpoint.tensor("v")
    size = (model / "model.safetensors").stat().st_size
    assert server.sent < size + 2**18 + 10_000
    assert not [r for r in server.requests if r.path.endswith(".bin") and r.method == "GET"]


def test_opening_reads_headers_only(tmp_path: Path, server: FileServer) -> None:
    groups = [{f"w{k}": torch.zeros(300_000)} for k in range(4)]
    write_sharded(tmp_path / "www/m", groups)
    with open_checkpoint(f"{server.url}/m") as checkpoint:
        assert checkpoint.nbytes == 4 * 300_000 * 4
    assert server.sent < 4 * (2**18 + 5000)


def test_a_long_header_is_read_whole(tmp_path: Path, memory: str) -> None:
    many = {f"a.rather.long.name.for.a.tensor.{k:05d}": torch.ones(1) for k in range(4000)}
    url = upload(write_model(tmp_path / "m", many), f"{memory}/m")
    with open_checkpoint(url) as checkpoint:
        assert len(checkpoint.tensors) == 4000


def refused(url: str, kind: type[ClmergeError] = InputError) -> str:
    """The three lines of what opening a URL raises."""
    with pytest.raises(kind) as caught:
        open_checkpoint(url)
    error = caught.value
    told = "\n".join(part for part in (error.message, error.detail, error.hint) if part)
    assert "\n" not in error.message
    assert "\n" not in (error.detail or "")
    return told


def test_what_is_not_there_is_said(tmp_path: Path, server: FileServer, memory: str) -> None:
    for url in (f"{server.url}/nothing", f"{memory}/nothing"):
        assert url in refused(url)
        assert url in refused(f"{url}/x.safetensors")


def test_a_folder_without_weights_is_said(tmp_path: Path, memory: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/other.safetensors").write_bytes(b"")
    assert "name the weight file itself" in refused(upload(tmp_path / "m", f"{memory}/m"))


def test_torch_files_beyond_this_disk_are_refused(tmp_path: Path, server: FileServer) -> None:
    write_pickle(tmp_path / "www/m/pytorch_model.bin", TENSORS)
    assert "safetensors" in refused(f"{server.url}/m")
    assert "safetensors" in refused(f"{server.url}/m/pytorch_model.bin")
    assert server.sent == 0


def test_a_broken_file_is_refused_as_on_the_disk(tmp_path: Path, memory: str) -> None:
    model = write_model(tmp_path / "m", TENSORS)
    content = (model / "model.safetensors").read_bytes()
    for damaged in (b"", content[:5], content[:60], content[:-1], content + b"x", b"\xff" * 100):
        (model / "model.safetensors").write_bytes(damaged)
        assert "memory://" in refused(upload(model, f"{memory}/m"), FormatError)


OUTSIDE = ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "https://x/y"]


@pytest.mark.parametrize("file", OUTSIDE)
def test_an_index_that_names_a_file_elsewhere_is_refused(
    tmp_path: Path, server: FileServer, file: str
) -> None:
    write_model(tmp_path / "www", TENSORS)
    write_index(tmp_path / "www/m/model.safetensors.index.json", {"w": file})
    assert "outside" in refused(f"{server.url}/m", FormatError)


def test_an_index_that_names_a_missing_file_is_refused(
    tmp_path: Path, server: FileServer, memory: str
) -> None:
    folder = shards(tmp_path / "www/m", TENSORS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    for url in (f"{server.url}/m", upload(folder, f"{memory}/m")):
        assert "not there" in refused(url, FormatError)


def test_a_server_that_sends_whole_files_is_refused_before_they_come(
    tmp_path: Path, server: FileServer
) -> None:
    write_model(tmp_path / "www/m", {"w": torch.zeros(10**6)})
    server.ranges = False
    assert "parts of files" in refused(f"{server.url}/m")
    assert server.sent < 10**5


def test_a_server_that_stays_silent_about_ranges_and_ignores_them_is_refused(
    tmp_path: Path, server: FileServer
) -> None:
    write_model(tmp_path / "www/m", {"w": torch.zeros(10**7)})
    with open_checkpoint(f"{server.url}/m") as checkpoint:
        server.ranges = False
        with pytest.raises(InputError, match="parts of files"):
            checkpoint.read("w", 9 * 10**6, 9 * 10**6 + 10)


def test_a_request_that_fails_once_is_made_again(tmp_path: Path, server: FileServer) -> None:
    write_model(tmp_path / "www/m", TENSORS)
    failed: list[Request] = []

    def once(request: Request) -> bool:
        if request.path.endswith("model.safetensors") and len(failed) < 2:
            failed.append(request)
            return True
        return False

    server.refuses = once
    with open_checkpoint(f"{server.url}/m") as checkpoint:
        assert same_bits(checkpoint.tensor("lm_head.weight"), TENSORS["lm_head.weight"])
    assert len(failed) == 2


def test_a_server_that_fails_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, server: FileServer, scratch: Path
) -> None:
    big = [write_model(tmp_path / f"www/m{k}", {"w": torch.randn(5 * 10**6)}) for k in range(2)]
    assert len(big) == 2
    server.refuses = lambda request: (request.span or (0, 0))[0] >= 10**7
    work = tmp_path / "work"
    work.mkdir()
    urls: list[Any] = [f"{server.url}/m{k}" for k in range(2)]
    method = linear(urls)
    started = time.monotonic()
    with pytest.raises(InputError, match="cannot be read") as caught:
        merge(method, work / "out")
    assert time.monotonic() - started < 20
    assert server.url in (caught.value.detail or "")
    assert not list(work.iterdir())
    for checkpoint in method.checkpoints:
        checkpoint.close()
    assert not list(scratch.iterdir())


SECRET = "sig=HUSH&token=HUSH"


def test_a_signed_url_opens_and_its_signature_is_never_told(
    tmp_path: Path, server: FileServer
) -> None:
    inputs = pair(tmp_path / "www")
    server.secret = SECRET
    urls: list[Any] = [f"{server.url}/m{k}?{SECRET}" for k in range(2)]
    merge(by_fisher(urls), tmp_path / "far")
    merge(by_fisher(inputs), tmp_path / "local")
    assert weight_bytes(tmp_path / "far") == weight_bytes(tmp_path / "local")
    for name, content in files_below(tmp_path / "far").items():
        assert b"HUSH" not in content, name


def test_errors_of_a_signed_url_never_tell_the_signature(
    tmp_path: Path, server: FileServer
) -> None:
    model = write_model(tmp_path / "www/m", TENSORS)
    for url in (f"{server.url}/m?{SECRET}", f"{server.url}/nothing?{SECRET}"):
        server.secret = "other"
        assert "HUSH" not in refused(url)
        assert "refused" in refused(url)
        server.secret = SECRET
    server.refuses = lambda request: True
    assert "HUSH" not in refused(f"{server.url}/m?{SECRET}")
    server.refuses = lambda request: False
    with open_checkpoint(f"{server.url}/m?{SECRET}") as checkpoint:
        assert "HUSH" not in f"{checkpoint.path} {checkpoint.files} {checkpoint.stamps()}"
        assert "HUSH" not in f"{checkpoint.file_of(NAMES[0])}"
    (model / "model.safetensors").write_bytes(b"damaged")
    assert "HUSH" not in refused(f"{server.url}/m?{SECRET}", FormatError)


def test_a_password_is_never_told() -> None:
    told = refused("http://me:HUSH@127.0.0.1:9/m")
    assert "HUSH" not in told
    assert "127.0.0.1:9/m" in told


def test_a_place_that_cannot_be_reached_is_said() -> None:
    assert "ConnectionRefusedError" in refused("http://127.0.0.1:9/m")


def test_an_unknown_protocol_is_said() -> None:
    assert "s3://" in refused("nosuch://bucket/m")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("aiohttp", "s3fs"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "clmerge[remote]" in refused("http://127.0.0.1:9/m")


def test_a_changed_file_has_another_stamp(tmp_path: Path, server: FileServer) -> None:
    write_model(tmp_path / "www/m", TENSORS)
    with open_checkpoint(f"{server.url}/m") as one:
        before = one.stamps()
    with open_checkpoint(f"{server.url}/m") as same:
        assert same.stamps() == before
    write_model(tmp_path / "www/m", model_tensors(1))
    with open_checkpoint(f"{server.url}/m") as other:
        assert other.stamps() != before
