"""The release script and the workflow, run step by step as a pipeline would, on tiny models."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.served import serving
from tests.tiny_models import TEXTS, WORDS, tiny_llama

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/release"


def variant(place: Path, name: str, *, seed: int, size: float) -> None:
    """A model that was moved from `base` by noise of this size, relative to each weight's."""
    shutil.copytree(place / "base", place / name)
    generator = torch.Generator().manual_seed(seed)
    moved = {
        key: weight + size * weight.std() * torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1
        else weight
        for key, weight in load_file(place / "base/model.safetensors").items()
    }
    save_file(moved, place / name / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def clmerge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("bin")) as program:
        yield program


@pytest.fixture
def place(tmp_path: Path, clmerge: Path) -> Path:
    """Models a, b and `broken`, their rows, and commands in place of those that would download."""
    tiny_llama(tmp_path / "base", seed=1)
    variant(tmp_path, "a", seed=1, size=0.02)
    variant(tmp_path, "b", seed=2, size=0.02)
    variant(tmp_path, "broken", seed=3, size=30)
    draw = random.Random(0)
    held_out = [" ".join(draw.choices(WORDS, k=9)) for _ in range(40)]
    for name, texts in (("rows", TEXTS), ("held-out", held_out)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    commands = tmp_path / "bin"
    commands.mkdir()
    real = f'exec {sys.executable} "$@"'
    script = f'if [ "$2" = pip ]; then echo "$@" >>"{tmp_path}/pip"; else {real}; fi'
    (commands / "python").write_text(f"#!/bin/sh\n{script}\n")
    (commands / "python").chmod(0o755)
    (commands / "clmerge").symlink_to(clmerge)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    given = {"RELEASE_A": "a", "RELEASE_B": "b", "RELEASE_TO": "release"}
    sizes = {"RELEASE_MIN_ROWS": "20"}
    given |= {f"RELEASE_ROWS_{one}": "rows.jsonl" for one in "AB"}
    given |= {f"RELEASE_HELD_OUT_{one}": "held-out.jsonl" for one in "AB"}
    paths = {name: str(place / value) for name, value in (given | more).items()}
    return os.environ | sizes | paths | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}


def release(
    place: Path, *steps: str, name: str = "first", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", EXAMPLE / "run.sh", *steps],
        env=environment(place, **more) | {"RELEASE_NAME": name},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def document(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_what_has_passed_is_published_to_the_bit(place: Path) -> None:
    passed = release(place, "fisher", "merge", "check", "gate")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    out = place / "release"
    file = out / "candidate/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert release(place, "publish").returncode == 10
    assert not (out / "latest").exists()
    file.write_bytes(content)
    assert release(place, "publish").returncode == 0
    assert (out / "latest").readlink() == Path("first")
    assert (out / "first/model.safetensors").read_bytes() == content
    assert document(out / "first/clmerge/check.json") == document(out / "baseline.json")
    verdict = document(out / "first/clmerge/verdict.json")
    assert {(one["suite"], one["against"]) for one in verdict["comparisons"]} == {
        ("both", "reference"),
        ("both", "anchor"),
    }
    assert (verdict["decision"], verdict["look"]) == ("accept", 1)
    # The next one is held against this one, on each parent's rows; of these there are too few.
    short = release(place, "merge", "check", "gate", name="next", RELEASE_HELD_OUT_B="rows.jsonl")
    assert short.returncode == 11, short.stderr
    assert "too few rows to tell" in short.stderr
    found = document(out / "gate.json")
    assert found["models"]["reference"] == str(out / "latest")
    decisions = {one["suite"]: one["decision"] for one in found["comparisons"]}
    assert decisions == {"a": "accept", "b": "inconclusive"}
    refused = release(place, "publish", name="next")
    assert (refused.returncode, "has not been gated" in refused.stderr) == (1, True)


def test_an_unknown_step_is_wrong_usage(place: Path) -> None:
    wrong = release(place, "ship")
    assert (wrong.returncode, wrong.stderr) == (2, "error: there is no step ship\n")


def steps() -> list[dict[str, Any]]:
    yaml: Any = importlib.import_module("yaml")
    (job,) = yaml.safe_load((EXAMPLE / "workflow.yml").read_text())["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def log(place: Path, step: str) -> str:
    return (place / f"{step}.log").read_text()


def run_workflow(place: Path, **more: str) -> Mapping[str, int]:
    """{step: exit code} of every `run:` of the workflow, in bash as GitHub starts it.

    After a failure only what stands under `always()` runs. `uses:` steps are GitHub's own.
    """
    codes: dict[str, int] = {}
    summary = {"GITHUB_STEP_SUMMARY": str(place / "summary.md"), "GITHUB_ACTIONS": "true"}
    for step in steps():
        failed = any(codes.values())
        if "run" not in step or (failed and step.get("if") != "always()"):
            continue
        (place / "step.sh").write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", place / "step.sh"],
            cwd=ROOT,
            env=environment(place, **more) | summary,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        codes[step["name"]] = done.returncode
        (place / f"{step['name']}.log").write_text(done.stdout + done.stderr)
    return codes


@pytest.mark.slow
def test_the_workflow_releases_what_passes_and_stops_at_what_does_not(place: Path) -> None:
    assert run_workflow(place) == {step["name"]: 0 for step in steps() if "run" in step}
    assert "torch" in (place / "pip").read_text()
    out = place / "release"
    released = (out / "latest").readlink()
    assert document(out / "baseline.json")["baseline"] is None
    assert "::notice title=clmerge check" in log(place, "Check")
    assert "::notice title=clmerge gate" in log(place, "Gate")
    summary = [(out / name).read_text() for name in ("check.md", "gate.md")]
    assert (place / "summary.md").read_text() == "".join(summary)

    codes = run_workflow(place, RELEASE_B="broken")
    assert (codes["Check"], codes["Gate"]) == (0, 10)
    assert list(codes)[-1] == "Summary"
    assert "::error title=clmerge gate" in log(place, "Gate")
    assert (place / "summary.md").read_text().endswith((out / "gate.md").read_text())
    assert document(out / "check.json")["baseline"] == str(out / "baseline.json")
    assert ElementTree.parse(out / "gate.xml").getroot().findall(".//failure")
    assert (out / "latest").readlink() == released
    assert (out / "candidate").is_dir()

    refused = release(place, "publish")
    assert (refused.returncode, "has not been gated" in refused.stderr) == (1, True)


def test_the_baseline_that_is_kept_is_the_one_that_is_restored() -> None:
    kept = {
        step["uses"].partition("@")[0]: step["with"]
        for step in steps()
        if step.get("uses", "").startswith("actions/cache/")
    }
    restored, saved = kept["actions/cache/restore"], kept["actions/cache/save"]
    assert restored["path"] == saved["path"]
    assert restored["path"].split() == ["release/baseline.json", "release/looks.json"]
    assert saved["key"].startswith(restored["restore-keys"])
