import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(p for p in EXAMPLES.iterdir() if (p / "run.sh").exists())
SCRIPTS = sorted(EXAMPLES.rglob("*.sh"))


def test_there_are_the_examples_that_these_tests_are_about() -> None:
    assert {p.name for p in FOLDERS} == {
        "published-pair",
        "quickstart",
        "recipes",
        "release",
        "sentiment",
        "trainer",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(EXAMPLES)))
def test_every_script_is_correct_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(EXAMPLES)))
def test_every_script_stops_at_its_first_error(script: Path) -> None:
    text = script.read_text()
    assert "set -euo pipefail" in text or 'settings.sh"\n' in text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_example_says_what_it_asks_and_is_listed(folder: Path) -> None:
    own = (folder / "README.md").read_text().splitlines()
    assert own[0].startswith("# ")
    assert len(own) > 5
    assert f"]({folder.name})" in (EXAMPLES / "README.md").read_text()


def test_every_setting_that_a_script_reads_is_documented_in_the_settings() -> None:
    import re

    read = {name for s in SCRIPTS for name in re.findall(r"\$\{(CLMERGE_\w+)", s.read_text())}
    header = [line for line in (EXAMPLES / "settings.sh").read_text().splitlines() if "#" in line]
    assert read
    assert {name for name in read if not any(name in line for line in header)} == set()


def test_ci_runs_what_a_person_runs() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"
