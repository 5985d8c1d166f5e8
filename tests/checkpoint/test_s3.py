"""An object store, as it is used: a real S3 server on this machine, through s3fs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import (
    CONFIG,
    by_fisher,
    files_below,
    fisher_like,
    linear,
    merge,
    model_tensors,
    silent,
    weight_bytes,
    write_model,
    write_sharded,
    write_sidecar,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import InputError, OutputError
from mergekit_cl.merging import OutputOptions
from mergekit_cl.remote_merge import run_remote_merge

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SECRET = "HUSH/HUSH+HUSH"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty bucket `models`, and the environment its owner would have."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3").create_bucket(Bucket="models")
    yield made
    made.objects.all().delete()
    made.delete()


def upload(folder: Path, bucket: Any) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"{folder.name}/{path.relative_to(folder)}")
    return f"s3://models/{folder.name}"


def test_a_fisher_merge_from_s3_gives_the_bytes_of_a_local_one(tmp_path: Path, bucket: Any) -> None:
    inputs = []
    for k in range(2):
        tensors = model_tensors(k)
        names = list(tensors)
        groups = [{n: tensors[n] for n in names[:3]}, {n: tensors[n] for n in names[3:]}]
        folder = write_sharded(tmp_path / f"m{k}", groups)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_sidecar(folder, fisher_like(tensors, k))
        inputs.append(folder)
    urls: list[Any] = [upload(folder, bucket) for folder in inputs]
    merge(by_fisher(urls), tmp_path / "far")
    merge(by_fisher(inputs), tmp_path / "local")
    assert weight_bytes(tmp_path / "far") == weight_bytes(tmp_path / "local")
    made = json.loads((tmp_path / "far/clmerge/manifest.json").read_text())
    assert [entry["path"] for entry in made["inputs"][:2]] == urls
    assert json.loads((tmp_path / "far/config.json").read_text()) == CONFIG


def test_a_single_object_is_a_checkpoint(tmp_path: Path, bucket: Any) -> None:
    url = upload(write_model(tmp_path / "m", model_tensors(1)), bucket)
    with open_checkpoint(f"{url}/model.safetensors") as checkpoint:
        assert checkpoint.tensors.keys() == model_tensors(1).keys()
        assert checkpoint.stamps()[0][2]  # the object's ETag


@pytest.mark.parametrize("url", ["s3://models/nothing", "s3://no-such-bucket/m", "s3://models"])
def test_what_is_not_there_is_said(bucket: Any, url: str) -> None:
    with pytest.raises(InputError, match="no such") as caught:
        open_checkpoint(url)
    assert caught.value.detail == url


def test_an_object_that_goes_away_in_the_middle_is_an_error(tmp_path: Path, bucket: Any) -> None:
    url = upload(write_model(tmp_path / "m", model_tensors(1)), bucket)
    with open_checkpoint(url) as checkpoint:
        bucket.Object("m/model.safetensors").delete()
        with pytest.raises(InputError, match="no such file") as caught:
            checkpoint.read("lm_head.weight")
    assert caught.value.detail == f"{url}/model.safetensors"


def test_a_store_that_cannot_be_reached_is_said_without_the_key(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with pytest.raises(InputError, match="cannot be read") as caught:
        open_checkpoint("s3://models/m")
    assert "HUSH" not in f"{caught.value.detail} {caught.value.hint}"


def test_missing_credentials_are_said(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="refused") as caught:
        open_checkpoint("s3://models/m")
    assert "AWS_PROFILE" in (caught.value.hint or "")


def test_an_output_on_s3_is_whole_and_can_be_merged_again(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inputs = [write_model(tmp_path / f"m{k}", model_tensors(k), CONFIG) for k in range(2)]
    merge(linear(inputs), tmp_path / "local", shard_size=2000)
    options = OutputOptions(target=tmp_path / "unused", shard_size=2000)
    made = run_remote_merge("s3://models/merged", linear(inputs), options, silent)
    assert (str(made.target), made.state) == ("s3://models/merged", "published")
    stored = {o.key.removeprefix("merged/"): o.get()["Body"].read() for o in bucket.objects.all()}
    local = files_below(tmp_path / "local")
    assert stored.keys() == local.keys()
    del stored["clmerge/manifest.json"], local["clmerge/manifest.json"]
    assert stored == local
    assert not (tmp_path / "unused").exists()
    again = run_remote_merge("s3://models/merged", linear(inputs), options, silent)
    assert again.state == "up to date"
    with open_checkpoint("s3://models/merged") as merged:
        assert merged.nbytes == sum(t.nbytes for t in model_tensors(0).values())


def test_a_bucket_that_is_not_there_is_neither_made_nor_merged_for(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mergekit_cl.remote_merge.run_merge", lambda *_: pytest.fail("it merged"))
    inputs = [write_model(tmp_path / f"m{k}", model_tensors(k)) for k in range(2)]
    options = OutputOptions(target=tmp_path / "unused")
    with pytest.raises(OutputError, match="cannot be uploaded"):
        run_remote_merge("s3://typo/merged", linear(inputs), options, silent)
    assert [found.name for found in boto3.resource("s3").buckets.all()] == ["models"]
