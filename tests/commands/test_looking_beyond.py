"""`clmerge inspect` and `clmerge verify` of models beyond this disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.checkpoints import SHAPES, checkpoint, sidecar
from tests.commands.running import Result, clmerge
from tests.servers import FileServer, serving

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")
SECRET = "token=k3yk3y"


@pytest.fixture
def server(place: Path) -> Iterator[FileServer]:
    assert clmerge("linear-merge", "a", "b", "-q", "-o", "merged").code == 0
    with serving(place) as started:
        yield started


def without_places(value: Any) -> Any:
    """A document but for where things lie and what it took."""
    dropped = ("path", "seconds", "bytes_per_second", "manifest", "sidecar", "beside")
    if isinstance(value, dict):
        return {key: without_places(v) for key, v in value.items() if key not in dropped}
    return value


def both(command: str, server: FileServer, name: str) -> tuple[Result, Result]:
    """The same command on the folder here and on the server."""
    return clmerge(command, name, "--json"), clmerge(command, f"{server.url}/{name}", "--json")


@pytest.mark.parametrize("name", ["a", "merged", "merged/model.safetensors"])
def test_what_is_told_of_a_model_on_a_server_is_what_is_told_here(
    server: FileServer, name: str
) -> None:
    here, there = both("inspect", server, name)
    assert (here.code, there.code, there.err) == (0, 0, "")
    assert without_places(there.document) == without_places(here.document)
    assert there.document["path"] == f"{server.url}/{name}"


@pytest.mark.parametrize("name", ["a", "merged"])
def test_a_model_on_a_server_is_verified_like_one_here(server: FileServer, name: str) -> None:
    here, there = both("verify", server, name)
    assert (here.code, there.code) == (0, 0), there
    assert without_places(there.document) == without_places(here.document)


def test_a_model_on_a_server_is_compared_like_one_here(server: FileServer, place: Path) -> None:
    line = ("linear-merge", "a", "b", "--dtype", "bfloat16", "-q", "-o", "half")
    assert clmerge(*line).code == 0
    here = clmerge("diff", "half", "a", "--json").document
    there = clmerge("diff", f"{server.url}/half", f"{server.url}/a", "--json").document
    assert there["model"] == here["model"]
    assert here["model"]["survival"] is not None
    assert here["model"]["predicted_kl"] is not None


def test_a_change_on_a_server_is_found_and_named(server: FileServer, place: Path) -> None:
    file = place / "merged/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    here, there = both("verify", server, "merged")
    assert (here.code, there.code) == (10, 10)
    assert there.document["differences"] == here.document["differences"]
    assert there.document["differences"][0]["name"] in SHAPES


def test_neither_shows_the_secret_in_a_url(server: FileServer, place: Path) -> None:
    server.secret = SECRET
    checkpoint(place / "c", 3)
    sidecar(place / "c")
    for command in ("inspect", "verify"):
        for name in ("c", "merged", "c/clmerge/fisher.safetensors", "nowhere"):
            for how in ([], ["--json"]):
                result = clmerge(command, f"{server.url}/{name}?{SECRET}", *how)
                assert "k3yk3y" not in result.out + result.err
                assert "unexpected" not in result.out + result.err
    assert clmerge("inspect", f"{server.url}/c?{SECRET}").code == 0
    assert clmerge("verify", f"{server.url}/c?{SECRET}").code == 0
