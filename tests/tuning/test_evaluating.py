"""What one process cannot measure, the others do not wait for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny_llama

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.training.model import build
from mergekit_cl.training.rows import Row
from mergekit_cl.training.tokenizer import load_tokenizer
from mergekit_cl.tuning.evaluating import evaluate
from mergekit_cl.tuning.taskrows import Reader


@pytest.mark.parametrize("broken", ["here", "there"])
def test_a_process_whose_losses_are_no_numbers_ends_the_measurement_in_all(
    tmp_path: Path, broken: str
) -> None:
    tiny_llama(tmp_path)
    reader = Reader(load_tokenizer(tmp_path), "causal-lm", {}, 64, True)
    rows = [Row("text", {"text": f"the cat {word}"}, "", word) for word in ("one", "two", "three")]
    encoded = reader.encode(rows, "rows")
    with open_checkpoint(tmp_path) as checkpoint:
        model = build(checkpoint).model
    if broken == "here":
        model.lm_head.weight.data.fill_(float("nan"))
    said: list[Any] = []

    def exchange(found: Any) -> list[Any]:
        said.append(found)
        return [found, NonFiniteError("theirs") if broken == "there" else None]

    engine: Any = SimpleNamespace(rank=0, world=2, sharded=False, exchange=exchange)
    live: Any = SimpleNamespace(
        tuned=SimpleNamespace(module=model), position=SimpleNamespace(steps=3)
    )
    with pytest.raises(NonFiniteError, match="theirs" if broken == "there" else "not finite"):
        evaluate(engine, live, {"a": encoded}, lambda count: None)
    assert len(said) == 1  # the others were told, whatever happened here
