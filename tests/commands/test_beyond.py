"""Places beyond the disk through the command line: merged, or told in three lines and no trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from servers import FileServer, serving

from tests.commands.checkpoints import checkpoint, sidecar
from tests.commands.running import clmerge, failure_lines, process
from tests.tiny_models import TEXTS, tiny_llama, tiny_tokenizer


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of checkpoints a and b with sidecars, and an empty working directory."""
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(tmp_path / "www" / name, seed), seed)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(tmp_path / "www") as server:
        yield server


def test_urls_are_merged_and_inspected_and_verified(far: FileServer, tmp_path: Path) -> None:
    urls = [f"{far.url}/{name}" for name in "ab"]
    assert clmerge("fisher-merge", *urls, "-o", "m", "--quiet").code == 0
    places = [str(tmp_path / "www" / name) for name in "ab"]
    assert clmerge("fisher-merge", *places, "-o", "n", "--quiet").code == 0
    one, other = load_file("m/model.safetensors"), load_file("n/model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert clmerge("fisher-merge", *urls, "-o", "m", "--json").document["state"] == "up to date"
    assert clmerge("verify", "m").code == 0


def test_a_plan_of_urls_transfers_headers_alone(far: FileServer, tmp_path: Path) -> None:
    checkpoint(tmp_path / "www/c", {"w": torch.zeros(10**6)})
    plan = clmerge("linear-merge", *[f"{far.url}/c"] * 2, "--dry-run", "--json").document
    assert plan["bytes_read"] == 2 * 4 * 10**6
    assert far.sent < 10**6
    assert plan["buffer_bytes"] >= plan["workers"] * 2 * 8 * 2**20


def test_memory_below_what_is_read_ahead_is_refused(far: FileServer) -> None:
    result = clmerge("linear-merge", f"{far.url}/a", f"{far.url}/b", "--memory", "20MB")
    assert result.code == 2
    assert "--memory" in result.err


def test_a_server_that_fails_in_the_middle_leaves_nothing_behind(
    far: FileServer, tmp_path: Path
) -> None:
    for name in "cd":
        checkpoint(tmp_path / "www" / name, {"w": torch.zeros(3 * 10**6)})
    far.refuses = lambda request: (request.span or (0, 0))[0] > 10**6
    (tmp_path / "scratch").mkdir()
    command = ["linear-merge", f"{far.url}/c?sig=HUSH", f"{far.url}/d?sig=HUSH"]
    shown = clmerge(*command, "--debug")
    assert "Traceback" in shown.err
    assert "HUSH" not in shown.err
    plain = process(*command, TMPDIR=str(tmp_path / "scratch"), OMP_NUM_THREADS="1")
    assert plain.code == 1
    assert "HUSH" not in plain.err
    lines = failure_lines(plain)
    assert len(lines) == 3
    assert f"{far.url}/c/model.safetensors" in lines[1] or f"{far.url}/d" in lines[1]
    assert list(Path.cwd().iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_sidecar_of_a_model_beyond_the_disk_needs_a_place(
    far: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "some words"}) + "\n")
    result = clmerge("fisher", f"{far.url}/a", "--data", tmp_path / "rows.jsonl")
    assert result.code == 1
    assert f"try: clmerge fisher {far.url}/a --data ... -o" in result.err
    assert list(Path.cwd().iterdir()) == []


def test_a_url_cannot_be_updated_in_place(far: FileServer) -> None:
    result = clmerge("ema-merge", f"{far.url}/a", f"{far.url}/b", "--decay", "0.9", "--in-place")
    assert result.code == 2
    assert "in place" in result.err


def test_a_bare_hub_name_downloads_nothing_and_tells_how_to_mean_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    result = clmerge("linear-merge", "org/name", "org/name")
    assert result.code == 1
    assert "try: hf://org/name" in result.err


def test_a_fisher_of_a_model_beyond_the_disk_is_that_of_the_model(
    far: FileServer, tmp_path: Path
) -> None:
    tiny_tokenizer(tmp_path / "www/llama")
    tiny_llama(tmp_path / "www/llama", shard_size="8KB")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "rows.jsonl").write_text(rows)
    data = ("--data", tmp_path / "rows.jsonl", "--quiet")
    url = f"{far.url}/llama"
    assert clmerge("fisher", url, *data, "-o", "x.safetensors").code == 0
    assert clmerge("fisher", tmp_path / "www/llama", *data, "-o", "y.safetensors").code == 0
    assert Path("x.safetensors").read_bytes() == Path("y.safetensors").read_bytes()
    merged = clmerge("fisher-merge", url, url, *["--fisher", "x.safetensors"] * 2, "--quiet")
    assert merged.code == 0
    assert Path("merged/tokenizer.json").is_file()
