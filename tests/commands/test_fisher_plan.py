"""`clmerge fisher --dry-run`: memory, passes and time, and nothing written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

import fisher.accumulator
from mergekit_cl.estimating import planning, probing, streams
from mergekit_cl.launched import Launched
from tests.commands.models import SIDECAR, run
from tests.commands.running import clmerge, refused
from tests.commands.trees import snapshot
from tests.tiny_models import TEXTS

ROWS = ("--data", "rows.jsonl")
STREAMED = (*ROWS, "--stream-layers")
HIDDEN = 16


def positions(model: str) -> int:
    """Tokens of all rows, each a batch of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def test_a_plan_tells_memory_passes_and_time_and_writes_nothing(models: Path) -> None:
    before = snapshot(models)
    plan = run("fisher", "a", *ROWS, "--dry-run", "--draws", "3")
    told = clmerge("fisher", "a", *ROWS, "--dry-run", "--draws", "3")
    assert told.code == 0
    assert told.err == "probing: the model is built and one batch computed; nothing is written\n"
    assert told.out.startswith(f"fisher into a/{SIDECAR}: 21 tensors, {len(TEXTS)} rows")
    assert "once forward and 3 times backward" in told.out
    assert "for the rows, judged by one batch" in told.out
    assert clmerge("fisher", "a", *ROWS, "--dry-run", "--quiet").err == ""
    assert snapshot(models) == before
    tensors = load_file("a/model.safetensors").values()
    assert plan["bytes_read"] == sum(tensor.nbytes for tensor in tensors)
    assert plan["bytes_written"] == sum(tensor.numel() * 2 for tensor in tensors)
    assert plan["memory_bytes"] == sum(tensor.numel() * 8 for tensor in tensors)
    assert (plan["rows"], plan["rows_at_most"]) == (len(TEXTS), 256)
    assert plan["passes"] == {"forward": 1, "backward": 3}
    assert plan["streaming"] is None


def test_the_time_is_that_of_the_first_batch_times_all_rows(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fisher.accumulator.Accumulator.add
    now = [0.0]
    monkeypatch.setattr(probing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(self: Any, batch: Any, **more: Any) -> None:
        now[0] += 0.5 * batch.inputs["input_ids"].numel()
        whole(self, batch, **more)

    monkeypatch.setattr(fisher.accumulator.Accumulator, "add", slow)
    plan = run("fisher", "a", *ROWS, "--dry-run", "--batch-size", "1")
    assert plan["expected_seconds"] == 0.5 * positions("a")
    monkeypatch.setattr(planning, "launched", lambda: Launched(0, 2, 0))
    plan = run("fisher", "a", *ROWS, "--dry-run", "--batch-size", "1")
    assert plan["expected_seconds"] == 0.25 * positions("a")


def test_activations_grow_with_the_batch(models: Path) -> None:
    found = [
        run("fisher", "a", *ROWS, "--dry-run", "--batch-size", size)["activations_bytes"]
        for size in ("2", "4")
    ]
    assert found[1] == pytest.approx(2 * found[0], rel=0.2)


@pytest.mark.parametrize("place", ["memory", "files"])
def test_a_streamed_plan_counts_the_bytes_of_each_part(
    models: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(streams, "IN_MEMORY", 2**28 if place == "memory" else 0)
    before = snapshot(models)
    line = ("fisher", "a", *STREAMED, "--dry-run", "--batch-size", "1")
    plan, told = run(*line), clmerge(*line)
    assert snapshot(models) == before
    assert "goes through each of 2 layers twice forward and once backward" in told.out
    assert f"of activations wait in {place}; temporary files take" in told.out
    tensors = load_file("a/model.safetensors")
    layer = sum(8 * t.numel() for name, t in tensors.items() if ".layers.0." in name)
    head = tensors["lm_head.weight"].numel() + HIDDEN
    boundary = positions("a") * HIDDEN * 4 * (2 + 1)
    found = plan["streaming"]
    assert found.pop("temporary_bytes") > 0
    assert found == {
        "layers": 2,
        "layer_bytes": layer,
        "outside_bytes": 8 * head,
        "boundary_bytes": boundary,
        "boundaries": place,
    }
    assert plan["memory_bytes"] == max(layer, 8 * head) + (boundary if place == "memory" else 0)
    assert plan["passes"] == {"forward": 2, "backward": 1}
    assert plan["activations_bytes"] > 0
    assert plan["expected_seconds"] > 0


def test_a_model_that_does_not_fit_is_not_probed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "available_bytes", lambda: 40_000)
    line = ("fisher", "a", *ROWS, "--dry-run", "--device", "cpu")
    told = clmerge(*line)
    assert (told.code, told.err) == (0, "")
    assert "note: not probed: 49.02 KB would be held and 40.00 KB is free" in told.out
    assert "--stream-layers" in told.out
    assert run(*line)["expected_seconds"] is None
    streamed = run(*line, "--stream-layers")
    assert streamed["notes"] == []
    assert streamed["expected_seconds"] > 0


def test_a_dry_run_refuses_what_the_run_would_refuse(models: Path) -> None:
    for more, code, says in (
        (("--memory", "1KB"), 2, "are needed"),
        (("--memory", "1KB", "--stream-layers"), 2, "are needed"),
        (("--stream-layers", "--base", "b"), 2, "--base b"),
        (("--estimator", "exact"), 2, "exact"),
    ):
        line = ("fisher", "a", *ROWS, *more)
        before = snapshot(models)
        run_, plan = clmerge(*line), clmerge(*line, "--dry-run")
        assert run_.code == plan.code == code
        assert plan.out == ""
        assert says in plan.err
        assert plan.err.splitlines()[-3:] == run_.err.splitlines()[-3:]
        assert snapshot(models) == before
    refused("fisher", "a", "--data", "none.jsonl", "--dry-run", unchanged=models, says=("no such",))
