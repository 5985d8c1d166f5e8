"""Fine-tune a model for a few steps on rows of text: how the examples get their specialists.

    python -m examples.finetune BASE ROWS.jsonl OUT --steps 20

Nothing in it is special to clmerge, and your own models come from elsewhere. OUT is saved in the
dtype that BASE is stored in. Where that is bfloat16, as most published models are, part of so small
an update is lost in rounding; the example measures what is left.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from examples.models import encode, load
from examples.once import digest, once
from examples.rows import read_rows


def batches(rows: list[dict[str, Any]], size: int, seed: int) -> Any:
    """Batches without end, in a new seeded order each time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows) - size + 1, size):
            yield [rows[i] for i in order[start : start + size]]


def finetune(given: argparse.Namespace, out: Path) -> None:
    """AdamW with a constant learning rate after two steps of warm-up."""
    torch.manual_seed(given.seed)  # for dropout, where the model has it
    model, tokenizer, stored = load(given.base)
    rows = read_rows(given.rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.0, fused=True)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    model.train()
    started, recent = time.monotonic(), []
    stream = batches(rows, min(given.batch_size, len(rows)), given.seed)
    for step, chosen in zip(range(1, given.steps + 1), stream, strict=False):
        loss = model(**encode(tokenizer, chosen, given.max_length)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % given.every == 0 or step == given.steps:
            seconds = time.monotonic() - started
            mean = sum(recent) / len(recent)
            print(f"  step {step} of {given.steps}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
            recent = []
    model.to(stored).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Fine-tune unless the same was done before."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("base", type=Path)
    arguments.add_argument("rows", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--lr", type=float, default=1e-4)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--every", type=int, default=5, help="print each so many steps")
    given = arguments.parse_args()
    settings = ("steps", "batch_size", "max_length", "lr", "seed")
    recipe: dict[str, object] = {name: getattr(given, name) for name in settings}
    recipe |= {"base": digest(given.base), "rows": digest(given.rows)}
    print(f"fine-tuning {given.base} on {given.rows}", flush=True)
    once(given.out, recipe, lambda out: finetune(given, out))


if __name__ == "__main__":
    main()
