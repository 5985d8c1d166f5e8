"""Fine-tune a classifier with transformers' Trainer, held back by the Fisher of what it knows.

    python -m examples.trainer.train MODEL ROWS.jsonl OUT --strength 1000

MODEL has a sidecar, as `clmerge fisher MODEL --data ...` makes one. Everything up to `Trainer(...)`
is what such a script has anyway, but for three lines: read the protection, make the callback, hand
it over. With `--strength 0` nothing is held back.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from examples.models import encode, load
from examples.once import digest, once
from examples.rows import read_rows
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.continual.trainer import ewc_callback
from mergekit_cl.sidecar import sidecar_of
from mergekit_cl.training.model import build
from mergekit_cl.tuning.protecting import protection_from_sidecar


def train(given: argparse.Namespace, out: Path) -> None:
    checkpoint = open_checkpoint(given.model)
    built = build(checkpoint)  # in float32, its parameters matched to the tensors of the file
    protection = protection_from_sidecar(built, sidecar_of(checkpoint, None), checkpoint)
    callback = ewc_callback(protection, given.strength, update=given.update)

    _, tokenizer, _ = load(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch_size,
            learning_rate=given.lr,
            logging_steps=25,
            save_strategy="no",
            remove_unused_columns=False,
            report_to=[],
            dataloader_pin_memory=False,
            seed=given.seed,
        )
        Trainer(
            built.model,
            arguments,
            data_collator=partial(collate, tokenizer, given.max_length),
            train_dataset=read_rows(given.rows),
            callbacks=[callback] if given.strength else [],
        ).train()
    if given.strength:
        covered = callback.held.coverage
        print(f"{covered.share:.1%} of the Fisher is held back", flush=True)
    built.model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def collate(tokenizer: Any, max_length: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return encode(tokenizer, rows, max_length)


def main() -> None:
    """Train unless the same was done before."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model", type=Path)
    arguments.add_argument("rows", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--strength", type=float, required=True, help="lambda")
    arguments.add_argument("--update", choices=["coupled", "proximal"], default="coupled")
    arguments.add_argument("--steps", type=int, default=100)
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--max-length", type=int, default=64)
    arguments.add_argument("--lr", type=float, default=1e-4)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    settings = ("strength", "update", "steps", "batch_size", "max_length", "lr", "seed")
    recipe: dict[str, object] = {name: getattr(given, name) for name in settings}
    recipe |= {"model": digest(given.model), "rows": digest(given.rows)}
    print(f"training {given.model} on {given.rows}, lambda {given.strength:g}", flush=True)
    once(given.out, recipe, lambda out: train(given, out))


if __name__ == "__main__":
    main()
