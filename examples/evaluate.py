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

from examples.compare import Scores
from examples.models import encode, load
from examples.once import digest, once
from examples.rows import read_rows
from examples.tables import NATS, RIGHT, results, summary


@torch.no_grad()
def score(folder: Path, rows_file: Path, batch_size: int, max_length: int, out: Path) -> None:
    """Write one model's scores on one text to `out`."""
    model, tokenizer, _ = load(folder)
    model.eval()
    rows = read_rows(rows_file)
    sums, units = [0.0] * len(rows), [1] * len(rows)
    # Rows of like length together: padding costs as much as text.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["text"]))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = encode(tokenizer, [rows[i] for i in chosen], max_length)
        labels = batch.pop("labels")
        for i, row_sum, row_units in zip(
            chosen, *score_batch(model(**batch).logits, labels), strict=True
        ):
            sums[i], units[i] = row_sum, row_units
    out.write_text(json.dumps({"sums": sums, "units": units}))


def score_batch(logits: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[int]]:
    """Per row: right or wrong and 1 for a class, summed nats and tokens for a text.

    logits: (rows, classes) with labels (rows,), or (rows, tokens, vocabulary) with labels
    (rows, tokens), -100 where there is no token.
    """
    if labels.ndim == 1:
        return (logits.argmax(-1) == labels).double().tolist(), [1] * len(labels)
    targets = labels[:, 1:]  # each position predicts the next token
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return nats.double().sum(1).tolist(), (targets != -100).sum(1).tolist()


def named_path(text: str) -> tuple[str, Path]:
    """NAME=PATH."""
    name, _, path = text.partition("=")
    return name, Path(path)


def collect(given: argparse.Namespace) -> dict[str, dict[str, Scores]]:
    """{model: {text: scores}}, each computed unless the same weights have read the same rows."""
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
    return scores


def main() -> None:
    """Score what has not been scored, then print and write the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--text", type=named_path, action="append", required=True)
    arguments.add_argument("--model", type=named_path, action="append", required=True)
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--max-length", type=int, default=128)
    given = arguments.parse_args()

    scores = collect(given)
    classes = all(u == 1 for s in next(iter(scores.values())).values() for u in s.units)
    unit = RIGHT if classes else NATS
    document = summary(scores, unit)
    (given.out / "table.md").write_text(document, "utf-8")
    (given.out / "results.json").write_text(json.dumps(results(scores, unit), indent=1) + "\n")
    print("\n" + document)


if __name__ == "__main__":
    main()
