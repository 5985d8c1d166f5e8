"""What does a language model keep of one text after learning another? Through `clmerge train`.

    python benchmarks/continual_text.py --work DIR          trains what is missing, prints a table
    python benchmarks/continual_text.py --work DIR --write  the table into docs/continual.md

SmolLM2-135M-Instruct learns the King James Bible and then German manuals, an adapter of rank 8 for
both; in nats per token of rows held out. DIR holds a run per method, each some 5 minutes on two
cores at 40 steps of 8 rows of 128 tokens; a stopped one is resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.continual_tables import write

ROOT = Path(__file__).resolve().parent.parent

BEGIN, END = (
    "<!-- the table: python benchmarks/continual_text.py --write -->",
    "<!-- end of texts -->",
)
DOMAINS = ("king-james", "german")
METHODS: dict[str, tuple[str, ...]] = {
    "naive": (),
    "EWC, lambda 10": ("ewc.lambda=10",),
    "EWC, lambda 1,000": ("ewc.lambda=1000",),
    "EWC, lambda 100,000": ("ewc.lambda=100000",),
    "replay of 200 rows": ("replay.rows=200", "replay.ratio=0.25"),
    "replay and EWC, lambda 1,000": ("replay.rows=200", "replay.ratio=0.25", "ewc.lambda=1000"),
}


def config(model: Path, text: Path, steps: int) -> str:
    """What every method's run has in common, as TOML."""
    tasks = [
        f"[[task]]\nname = {json.dumps(name)}\nsteps = {steps}\n"
        f"data = [{json.dumps(str(text / name / 'train.jsonl'))}]\n"
        f"validation = [{json.dumps(str(text / name / 'held-out.jsonl'))}]\n"
        for name in DOMAINS
    ]
    return (
        f"model = {json.dumps(str(model))}\nfisher = false\n\n" + "\n".join(tasks) + "\n[lora]\n"
        "rank = 8\n\n[optimizer]\nlearning_rate = 5e-4\n\n[batch]\nrows = 8\nmax_length = 128\n"
    )


def make_inputs(work: Path) -> tuple[Path, Path]:
    """The model and the texts, as the quick start makes them."""
    model, text = work / "base", work / "text"
    for module, line in (("smollm2", [model]), ("texts", [text, "--held-out", "512"])):
        command = [sys.executable, "-m", f"examples.quickstart.{module}", *map(str, line)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=2)
    return model, text


def learn(work: Path, name: str, common: str) -> dict[str, Any]:
    """The task matrix of one method's run, trained or resumed where it is not finished."""
    run = work / "".join(letter if letter.isalnum() else "-" for letter in name)
    config_file = work / f"{run.name}.toml"
    config_file.write_text(common)
    line = ["train", str(config_file), "-o", str(run)]
    line += [word for change in METHODS[name] for word in ("--set", change)]
    if (run / "run.json").exists():
        line = ["train", "--resume", str(run)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mergekit_cl", *line, "--quiet"]
    subprocess.run(command, check=True, env=environment, stdout=2)
    found: dict[str, Any] = json.loads((run / "tasks.json").read_text())["loss"]
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per method: losses on both texts, and what was forgotten of the first."""
    first, second = DOMAINS
    lines = [
        f"| method | {first}: before | learned | at the end | forgotten | {second}: at the end |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, matrix in found.items():
        before, after, end = matrix["before"], *matrix["entries"]
        lost = matrix["forgetting"]
        reach = "" if lost["upper"] is None else f" ± {(lost['upper'] - lost['lower']) / 2:.3f}"
        values = [before[0]["value"], after[0]["value"], end[0]["value"]]
        numbers = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {numbers} | {lost['value']:.3f}{reach} | {end[1]['value']:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Train what is missing, then print the table or write it into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="a folder for runs, 2 GB")
    parser.add_argument("--steps", type=int, default=40, help="of each task")
    parser.add_argument("--model", type=Path, help="another model than SmolLM2, with --text")
    parser.add_argument("--text", type=Path, help=f"a folder with {' and '.join(DOMAINS)}")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model, text = given.model, given.text
    if model is None or text is None:
        model, text = make_inputs(work)
    common = config(model.resolve(), text.resolve(), given.steps)
    shown = table({name: learn(work, name, common) for name in given.methods})
    if given.write:
        write(lambda _: shown, BEGIN, END)
    else:
        print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
