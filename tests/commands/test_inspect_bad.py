"""`clmerge inspect` of what is broken or hostile: told, or one plain error, never obeyed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from making import raw_safetensors
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import CONFIG, checkpoint
from tests.commands.inspections import MANIFEST, adapter, config, told
from tests.commands.nonsense import spoiled
from tests.commands.running import Result, clmerge, refused

# What is nothing of the kind


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", ("no such file or directory",)),
        ("empty", ("holds no checkpoint",)),
        ("a/config.json", ("neither weights nor a manifest",)),
        ("text.txt", ("the file",)),
        ("half.safetensors", ("the file is truncated",)),
        ("only-config", ("the config of an adapter, but no weights",)),
        ("bad-config", ("the file is not JSON", "adapter_config.json")),
        ("bad.json", ("the file is not JSON",)),
        ("list.json", ("not a JSON object",)),
        ("made.json", ("the manifest lacks a text", "command")),
        ("liar.safetensors", ("no Fisher sidecar",)),
    ],
)
def test_what_it_cannot_tell_is_a_plain_error(
    place: Path, path: str, says: tuple[str, ...]
) -> None:
    (place / "empty").mkdir()
    (place / "text.txt").write_text("hello there")
    content = Path("a/model.safetensors").read_bytes()
    (place / "half.safetensors").write_bytes(content[:-9])
    adapter(place / "only-config")
    (place / "only-config/adapter_model.safetensors").unlink()
    adapter(place / "bad-config")
    (place / "bad-config/adapter_config.json").write_text("{")
    (place / "bad.json").write_text("[" * 100_000)
    (place / "list.json").write_text("[]")
    (place / "made.json").write_text('{"format": "clmerge.manifest/1"}')
    save_file({"w": torch.ones(1)}, "liar.safetensors", metadata={"clmerge.fisher": "[]"})
    refused("inspect", path, unchanged=place, says=says)


# Hostile content


HOSTILE = ("\x1b[2J\x1b]0;owned\x07", "[bold red]x[/bold red]", "new\nline", "‮right", "é")
ESCAPED = ("\\x1b[2J", "[bold red]x[/bold red]", "new\\nline", "\\u202eright", "é")


def spoken(result: Result) -> str:
    """What was printed, after checking that no character of it can command a terminal."""
    assert "internal" not in result.out, result
    assert result.code == 0, result
    assert all(c.isprintable() for c in (result.out + result.err).replace("\n", ""))
    return result.out


def test_names_and_values_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2) for name in HOSTILE}
    folder = checkpoint(tmp_path / HOSTILE[0], tensors)
    config(folder, architectures=list(HOSTILE), model_type=HOSTILE[0])
    metadata = {name: name for name in HOSTILE}
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    shown = spoken(clmerge("inspect", folder, "--tensors"))
    assert all(shown.count(text) >= 3 for text in ESCAPED)
    told_names = [tensor["name"] for tensor in told(folder)["tensors"]]
    assert sorted(told_names) == sorted(HOSTILE)


def test_errors_about_hostile_names_cannot_either(tmp_path: Path) -> None:
    entry = {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({HOSTILE[0]: entry}, bytes(4)))
    result = clmerge("inspect", path)
    assert result.code == 1
    assert "\\x1b[2J" in result.err
    assert all(c.isprintable() for c in result.err.replace("\n", ""))


def test_a_path_that_is_no_text_is_shown_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    try:
        checkpoint(tmp_path / name, 0)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert "\\udcff" in spoken(clmerge("inspect", tmp_path / name))
    assert told(tmp_path / name)["path"].endswith(name)


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_whatever_a_sidecar_says_it_is_told_or_a_plain_error(place: Path, how: list[str]) -> None:
    path = place / "a/clmerge/fisher.safetensors"
    tensors = load_file(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["clmerge.fisher"])
    said |= {"mean_nll": 2.0, "weights_digest": "x", "missing": {"w": "frozen"}}
    for where, changed in spoiled(said):
        save_file(tensors, path, metadata={"clmerge.fisher": json.dumps(changed)})
        _told_or_refused(clmerge("inspect", path, *how), where)


@pytest.fixture
def merged(place: Path) -> Path:
    assert clmerge("fisher-merge", "a", "b", "-q").code == 0
    return place / "merged"


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_whatever_a_manifest_says_it_is_told_or_a_plain_error(merged: Path, how: list[str]) -> None:
    manifest = merged / MANIFEST
    for where, changed in spoiled(json.loads(manifest.read_text())):
        manifest.write_text(json.dumps(changed))
        _told_or_refused(clmerge("inspect", manifest, *how), where)
        assert clmerge("inspect", merged, *how).code == 0


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_whatever_a_config_says_it_is_told_or_a_plain_error(tmp_path: Path, how: list[str]) -> None:
    folder = adapter(tmp_path / "x", rank_pattern={"a": 1})
    place = folder / "adapter_config.json"
    for where, changed in spoiled(json.loads(place.read_text())):
        place.write_text(json.dumps(changed))
        _told_or_refused(clmerge("inspect", folder, *how), where)
    model = checkpoint(tmp_path / "m", 0)
    said = {**CONFIG, "architectures": ["A"], "text_config": {"n_layer": 2}}
    for where, changed in spoiled({**said, "tie_word_embeddings": True}):
        (model / "config.json").write_text(json.dumps(changed))
        _told_or_refused(clmerge("inspect", model, *how), where)


def _told_or_refused(result: Result, where: object) -> None:
    assert result.code in (0, 1), (where, result)
    assert "unexpected" not in result.out + result.err, (where, result)
    assert all(c.isprintable() for c in (result.out + result.err).replace("\n", "")), where


def test_values_nested_without_end_are_cut(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", 0)
    deep = '{"a":' * 800 + "1" + "}" * 800
    (folder / "config.json").write_text(deep)
    assert clmerge("inspect", folder, "--json").code == 0
    assert clmerge("inspect", folder).code == 0
