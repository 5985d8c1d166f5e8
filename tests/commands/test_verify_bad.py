"""`clmerge verify` of what is no record, or a hostile one: a plain error, never obeyed."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.checkpoints import SHAPES, checkpoint, sidecar
from tests.commands.nonsense import spoiled
from tests.commands.running import clmerge, refused, start
from tests.commands.verifications import differences, save


@pytest.fixture
def merged(place: Path) -> Path:
    """A merge of a and b in one file."""
    assert clmerge("linear-merge", "a", "b", "-q").code == 0
    return place / "merged"


# Nothing to verify, and what is no record


def test_without_a_record_it_says_so_and_what_makes_one(place: Path) -> None:
    checkpoint(place / "plain")
    says = ("nothing to verify against", "plain/clmerge", "clmerge fisher")
    refused("verify", "plain", unchanged=place, says=says)


def test_a_sidecar_without_digests_is_no_record(place: Path) -> None:
    checkpoint(place / "c", 3)
    tensors = {name: {"digest": None} for name in SHAPES}
    sidecar(place / "c", tensors=tensors)
    refused("verify", "c", unchanged=place, says=("nothing to verify against", "c/clmerge/fisher"))


def test_an_unreadable_sidecar_alone_is_an_error(place: Path) -> None:
    (place / "a/clmerge/fisher.safetensors").write_bytes(b"rubbish")
    refused(
        "verify", "a", unchanged=place, says=("too short to be a safetensors file", "a/clmerge")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the manifest is not JSON"),
        ("[]", "the manifest is not a JSON object"),
        ("[" * 100_000, "the manifest is not JSON"),
        ("{}", "not a manifest of this version"),
        ('{"format": "clmerge.manifest/2"}', "clmerge.manifest/2"),
    ],
)
def test_a_record_that_cannot_be_understood_is_an_error(
    merged: Path, place: Path, text: str, says: str
) -> None:
    (merged / "clmerge/manifest.json").write_text(text)
    refused("verify", "merged", unchanged=place, says=(says, "merged/clmerge/manifest.json"))


@pytest.mark.parametrize("name", ["../a/model.safetensors", "/etc/passwd", "..", "", "a\0b"])
def test_a_manifest_cannot_lead_outside_its_folder(merged: Path, place: Path, name: str) -> None:
    manifest = merged / "clmerge/manifest.json"
    made = json.loads(manifest.read_text())
    made["outputs"][0]["files"][0]["name"] = name
    manifest.write_text(json.dumps(made))
    os.truncate(merged / "model.safetensors", 100)  # so that files are looked at one by one
    refused("verify", "merged", unchanged=place, says=("a file outside its folder",))


@pytest.mark.parametrize("path", ["nowhere", "hf://org/name@v1", "a/config.json", "a/clmerge"])
def test_what_is_no_checkpoint_is_an_error(
    place: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = clmerge("verify", path)
    assert (result.code, result.out) == (1, "")


def test_whatever_a_manifest_says_the_answer_is_a_verdict_or_a_plain_error(merged: Path) -> None:
    manifest = merged / "clmerge/manifest.json"
    codes: Counter[int] = Counter()
    said = json.loads(manifest.read_text())
    for path, made in spoiled(said):
        manifest.write_text(json.dumps(made))
        result = clmerge("verify", merged, "--json", "-q")
        codes[result.code] += 1
        if path[0] == "verdict" and made.get("verdict") == said["verdict"]:
            assert result.code == 0, (path, result)  # spoiled into what it was
        elif path != ("command",):  # any text will do
            assert result.code in ((1, 10) if _is_compared(path) else (0,)), (path, result)
        assert result.code != 1 or result.error["code"] in ("format", "input"), (path, result)
    assert min(codes[0], codes[1], codes[10]) > 30


def _is_compared(path: tuple[Any, ...]) -> bool:
    """Whether a value of a manifest says something about the files beside it, or of its form."""
    if path[0] == "outputs":
        return path[2:3] != ("path",) and path[2:3] != ("role",)
    if path[0] == "tensors":
        return path[2:3] != ("action",)
    return path[0] in ("format", "verdict")


# Names


HOSTILE = ("\x1b[2J\x1b]0;owned\x07", "[bold red]x[/bold red]", "new\nline", "‮right", "é")


def test_names_cannot_speak_to_the_terminal(place: Path) -> None:
    for name, value in (("c", 1.0), ("d", 2.0)):
        checkpoint(place / name, {hostile: torch.full((3,), value) for hostile in HOSTILE})
    assert clmerge("linear-merge", "c", "d", "-q", "--no-report").code == 0
    save(place / "merged", {hostile: torch.zeros(3) for hostile in HOSTILE})
    shown = clmerge("verify", "merged").out
    assert all(c.isprintable() for c in shown.replace("\n", ""))
    said = ("\\x1b[2J", "[bold red]x[/bold red]", "new\\nline", "\\u202eright", "é")
    assert all(text in shown for text in said)
    assert set(differences(place / "merged")["changed"]) == set(HOSTILE)


def test_an_encoding_without_a_character_is_no_reason_to_fail(place: Path) -> None:
    checkpoint(place / "c", {"é": torch.ones(3)})
    sidecar(place / "c")
    save(place / "c", {"é": torch.zeros(3)})
    running = start("verify", "c", PYTHONIOENCODING="ascii")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, "\\xe9" in out, "Traceback" in err) == (10, True, False)
