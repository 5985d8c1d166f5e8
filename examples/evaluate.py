"""Score models on held-out rows and print one table.

    python -m examples.evaluate OUT --text NAME=ROWS.jsonl ... --model NAME=FOLDER ...

Language models get nats per token (less is better), classifiers the share of right answers. The
first model is what the others are compared with; `linear` and `fisher` also with each other. Writes
OUT/table.md and OUT/results.json; per-row scores are kept in OUT/scores, so that a second run reads
them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from examples.compare import Difference, Scores, against, table
from examples.models import encode, load
from examples.once import digest, once
from examples.rows import read_rows


@torch.no_grad()
def score(folder: Path, rows_file: Path, batch_size: int, max_length: int, out: Path) -> None:
    """Write one model's scores on one text to `out`."""
    model, tokenizer, _ = load(folder)
    model.eval()
    rows = read_rows(rows_file)
    sums: list[float] = []
    units: list[int] = []
    for start in range(0, len(rows), batch_size):
        batch = encode(tokenizer, rows[start : start + batch_size], max_length)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        if labels.ndim == 1:
            sums += (logits.argmax(-1) == labels).double().tolist()
            units += [1] * len(labels)
            continue
        targets = labels[:, 1:]  # each position predicts the next token
        nats = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        sums += nats.double().sum(1).tolist()
        units += (targets != -100).sum(1).tolist()
    out.write_text(json.dumps({"sums": sums, "units": units}))


def say(difference: Difference, scale: float, digits: int) -> dict[str, object]:
    """A difference for results.json, in the table's unit."""
    return {
        "difference": round(difference.value * scale, digits + 2),
        "standard_error": round(difference.error * scale, digits + 2),
        "clear": difference.clear,
    }


def named_path(text: str) -> tuple[str, Path]:
    """NAME=PATH."""
    name, _, path = text.partition("=")
    return name, Path(path)


def main() -> None:
    """Score what has not been scored, then print and write the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--text", type=named_path, action="append", required=True)
    arguments.add_argument("--model", type=named_path, action="append", required=True)
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--max-length", type=int, default=128)
    given = arguments.parse_args()

    scores: dict[str, dict[str, Scores]] = {}
    for model, folder in given.model:
        weights = digest(folder)
        scores[model] = {}
        for text, rows in given.text:
            kept = given.out / "scores" / f"{model}-on-{text}.json"
            recipe: dict[str, object] = {"weights": weights, "rows": digest(rows)}
            recipe |= {"max_length": given.max_length}
            work = partial(score, folder, rows, given.batch_size, given.max_length)
            if once(kept, recipe, work):
                print(f"scored {model} on {text}", flush=True)
            found = json.loads(kept.read_text())
            scores[model][text] = Scores(tuple(found["sums"]), tuple(found["units"]))

    baseline = given.model[0][0]
    right_answers = all(u == 1 for s in scores[baseline].values() for u in s.units)
    unit, scale, digits = ("% right", 100.0, 1) if right_answers else ("nats per token", 1.0, 3)
    lines = [table(scores, baseline, scale=scale, digits=digits), ""]
    rows_each = ", ".join(f"{len(s.units)} of {text}" for text, s in scores[baseline].items())
    lines.append(
        f"Held-out {unit}; {'more' if right_answers else 'less'} is better. In brackets: difference "
        f"from {baseline} ± its standard error, paired over rows ({rows_each})."
    )
    results: dict[str, object] = {
        "unit": unit,
        "rows": {text: len(s.units) for text, s in scores[baseline].items()},
        "models": {
            model: {
                "mean": {text: round(s.mean * scale, digits + 2) for text, s in by_text.items()},
                f"against {baseline}": {
                    text: say(d, scale, digits)
                    for text, d in against(scores, model, baseline).items()
                },
            }
            for model, by_text in scores.items()
        },
    }
    if {"linear", "fisher"} <= scores.keys():
        gains = against(scores, "fisher", "linear")
        results["fisher against linear"] = {t: say(d, scale, digits) for t, d in gains.items()}
        parts = [
            f"{text} {d.value * scale:+.{digits}f} ± {d.error * scale:.{digits}f}"
            f"{'' if d.clear else ' (no clear difference)'}"
            for text, d in gains.items()
        ]
        lines.append(f"Fisher merge less linear merge: {'; '.join(parts)}.")
    document = "\n".join(lines) + "\n"
    (given.out / "table.md").write_text(document)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + document)


if __name__ == "__main__":
    main()
