"""`clmerge fisher --target-se`: stops where the trace is known well enough, and says how sure."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import fisher.accumulator
from mergekit_cl.training.choose import choose
from mergekit_cl.training.data import read_rows
from tests.commands.models import SIDECAR, run, said_by, write_rows
from tests.commands.running import clmerge, refused
from tests.tiny_models import TEXTS

LINE = ("fisher", "a", "--data", "many.jsonl", "--max-length", "12")


@pytest.fixture
def many(models: Path) -> Path:
    """200 different rows of 2 to 5 of the words of TEXTS."""
    words = sorted({word for text in TEXTS for word in text.split()})
    draw = np.random.default_rng(0)
    rows = [
        {"text": " ".join(draw.choice(words, size=int(draw.integers(2, 12))))} for _ in range(200)
    ]
    write_rows(models / "many.jsonl", rows)
    return models


def test_it_stops_at_the_same_rows_for_every_batch_size(many: Path) -> None:
    found = [
        run(*LINE, "--target-se", "0.1", "--batch-size", size, "-o", f"{size}.safetensors")
        for size in ("1", "8", "64")
    ]
    assert len({one["examples"] for one in found}) == 1
    first = found[0]
    assert 32 <= first["examples"] < 200
    assert (first["examples"] - 32) % 16 == 0
    assert first["sampling"]["stopped"] == "target"
    assert first["sampling"]["relative_standard_error"] <= 0.1
    assert first["trace_standard_error"] / first["trace"] == pytest.approx(
        first["sampling"]["relative_standard_error"], rel=1e-3
    )
    one, other = (load_file(f"{size}.safetensors") for size in ("1", "64"))
    assert all(float((one[n].float() - other[n].float()).norm()) <= 0.01 for n in one)


def test_the_rows_used_are_the_first_by_key_as_a_smaller_sample_would_be(many: Path) -> None:
    document = run(*LINE, "--target-se", "0.1", "--store-dtype", "float32")
    used = str(document["examples"])
    run(*LINE, "--samples", used, "--store-dtype", "float32", "-o", "plain.safetensors")
    stopped, plain = said_by(many / "a" / SIDECAR), said_by(many / "plain.safetensors")
    assert stopped["tokens"] == plain["tokens"]
    assert stopped["trace_standard_error"] == pytest.approx(plain["trace_standard_error"], rel=1e-4)
    chosen = choose(read_rows(("many.jsonl",), text_field=None, label_field=None), 200, 0)
    assert len(chosen.rows) > document["examples"]


def test_a_target_that_samples_do_not_reach_is_said_with_what_it_would_take(many: Path) -> None:
    result = clmerge(*LINE, "--target-se", "0.02", "--samples", "64")
    assert result.code == 0
    sampling = said_by(many / "a" / SIDECAR)["sampling"]
    needed = sampling["examples_needed"]
    assert sampling["stopped"] == "samples"
    assert needed == pytest.approx(64 * (sampling["relative_standard_error"] / 0.02) ** 2, abs=1)
    assert (
        f"the asked ±2.00% is not reached within 64 rows (--samples): about {needed} rows would "
        "be needed\n" in result.err
    )


def test_the_end_says_how_sure_it_is_and_of_which_tensor_least(many: Path) -> None:
    result = clmerge(*LINE, "--samples", "40")
    said = said_by(many / "a" / SIDECAR)
    errors = {n: e["standard_error"] / e["sum"] for n, e in said["tensors"].items() if e["sum"]}
    worst = max(errors, key=lambda name: errors[name])
    trace = sum(entry["sum"] for entry in said["tensors"].values())
    expected = (
        f"trace {trace:.4g} per row, known to ±{said['trace_standard_error'] / trace:.1%} "
        f"(one standard error); least sure: {worst}, ±{errors[worst]:.1%}"
    )
    assert expected in result.err.splitlines()
    assert said["sampling"]["stopped"] == "samples"
    write_rows(many / "one.jsonl", [{"text": "the cat sat"}])
    alone = clmerge("fisher", "b", "--data", "one.jsonl")
    assert "with no way to tell how sure: that takes two rows" in alone.err


def test_an_interrupted_run_stops_at_the_same_rows(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*LINE, "--target-se", "0.1", "--batch-size", "8")
    run(*line, "-o", "whole.safetensors")
    add = fisher.accumulator.Accumulator.add
    for stop in (2, 6):  # in the middle of a stage, and at its end where a decision is due

        def interrupted(self: Any, batch: Any, *more: Any, stop: int = stop) -> None:
            add(self, batch, *more)
            if self.examples == 8 * stop:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(fisher.accumulator.Accumulator, "add", interrupted)
            assert clmerge(*line).code == 130
        assert clmerge(*line).code == 0
        assert (many / "a" / SIDECAR).read_bytes() == (many / "whole.safetensors").read_bytes()
        (many / "a" / SIDECAR).unlink()


def test_the_target_is_part_of_what_a_sidecar_was_asked_for(many: Path) -> None:
    run(*LINE, "--target-se", "0.1")
    assert run(*LINE, "--target-se", "0.1")["state"] == "up to date"
    refused(*LINE, "--target-se", "0.2", unchanged=many, says=("made with other options",))


@pytest.mark.parametrize("value", ["0", "-0.1", "much"])
def test_a_target_is_a_number_above_0(many: Path, value: str) -> None:
    result = clmerge(*LINE, "--target-se", value)
    assert (result.code, result.out) == (2, "")
    assert "--target-se" in result.err
