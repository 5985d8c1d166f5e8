"""`clmerge fisher --stream-layers`: the same sidecar, from one layer at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import fisher.streamed
from mergekit_cl.estimating import streams
from tests.commands.models import SIDECAR, distance, run, said_by, stored
from tests.commands.running import clmerge, refused
from tests.tiny_models import tiny_qwen3_moe

FULL = ("--store-dtype", "float32")


@pytest.mark.parametrize("model", ["a", "tied", "gpt", "moe", "qwen", "c"])
def test_the_sidecar_is_the_one_of_the_whole_model(models: Path, model: str) -> None:
    if model == "qwen":
        tiny_qwen3_moe(models / model)
    data = "labelled.csv" if model == "c" else "rows.jsonl"
    line = ("fisher", model, "--data", data, *FULL, "--batch-size", "3")
    run(*line, "-o", "whole.safetensors")
    run(*line, "--stream-layers")
    expected = {name: t.double() for name, t in stored(models / "whole.safetensors").items()}
    assert distance(stored(models / model / SIDECAR), expected) < 1e-5
    one, other = said_by(models / "whole.safetensors"), said_by(models / model / SIDECAR)
    assert other["mean_nll"] == pytest.approx(one["mean_nll"], rel=1e-6)
    sure = "trace_standard_error"
    assert other[sure] == pytest.approx(one[sure], rel=1e-5)
    sampled = [said.pop("sampling") for said in (one, other)]
    share = [sample.pop("relative_standard_error") for sample in sampled]
    assert share[0] == pytest.approx(share[1], rel=1e-5)
    assert sampled[0] == sampled[1]
    changing = {"mean_nll", "tensors", sure}
    assert {k: v for k, v in one.items() if k not in changing} == {
        k: v for k, v in other.items() if k not in changing
    }
    assert list(one["tensors"]) == list(other["tensors"])
    for name, entry in one["tensors"].items():
        found = other["tensors"][name]
        assert found.keys() == entry.keys()
        assert found["digest"] == entry["digest"]
        assert found["count"] == entry["count"]
        assert found["sum"] == pytest.approx(entry["sum"], rel=1e-4, abs=1e-9)
    # The same result under another name is the same result.
    assert clmerge("fisher", model, "--data", data, *FULL, "--batch-size", "3").err.endswith(
        "is up to date\n"
    )


def test_shards_and_choices_are_as_without(models: Path) -> None:
    line = ("fisher", "a", "--data", "rows.jsonl", "--shard-size", "3KB", "--include", "*layers.1*")
    run(*line, "-o", "whole/fisher.safetensors")
    run(*line, "--stream-layers", "-o", "layers/fisher.safetensors")
    names = [
        sorted(file.name for file in (models / place).iterdir()) for place in ("whole", "layers")
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 2
    for name in names[0]:
        if name.endswith(".safetensors"):
            one, other = stored(models / "whole" / name), stored(models / "layers" / name)
            assert distance(other, {n: t.double() for n, t in one.items()}) < 1e-2  # bfloat16


@pytest.mark.parametrize("in_memory", [0, 2**28], ids=["in files", "in memory"])
@pytest.mark.parametrize("count", [1, 4, 6, 8, 10])
def test_an_interrupted_run_is_continued_to_the_same_bytes(
    models: Path, monkeypatch: pytest.MonkeyPatch, count: int, in_memory: int
) -> None:
    monkeypatch.setattr(streams, "IN_MEMORY", in_memory)
    line = ("fisher", "tied", "--data", "rows.jsonl", "--batch-size", "4", "--stream-layers")
    asked: list[int] = []
    whole = fisher.streamed.Streamed._hidden

    def hidden(self: Any, index: int, number: int) -> Any:
        asked.append(index)
        if len(asked) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, index, number)

    monkeypatch.setattr(fisher.streamed.Streamed, "_hidden", hidden)
    result = clmerge(*line)
    assert result.code == 143
    assert "the same command continues" in result.err
    place = models / "tied/clmerge/.fisher.safetensors.partial"
    assert place.is_dir()
    refused(*line[:-1], unchanged=models, says=("was interrupted", "--restart"))
    assert clmerge(*line).code == 0
    assert not place.exists()
    assert clmerge(*line, "-o", "whole.safetensors").code == 0
    found = (models / "tied" / SIDECAR).read_bytes()
    assert found == (models / "whole.safetensors").read_bytes()


def test_an_adapter_and_too_little_memory_are_refused(models: Path) -> None:
    line = ("fisher", "a", "--data", "rows.jsonl", "--stream-layers")
    refused(*line, "--adapter", "x", code=2, unchanged=models, says=("--adapter x",))
    refused(*line, "--base", "b", code=2, unchanged=models, says=("--base b",))
    refused(*line, "--target-se", "0.1", code=2, unchanged=models, says=("--target-se 0.1",))
    refused(*line, "--memory", "1KB", code=2, unchanged=models, says=("--memory", "are needed"))


def test_a_model_that_is_no_single_stack_is_refused_with_what_to_do(models: Path) -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer

    config = AlbertConfig(
        vocab_size=VOCAB_SIZE,
        embedding_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_labels=3,
    )
    AlbertForSequenceClassification(config).save_pretrained("albert")
    tiny_tokenizer(models / "albert")
    refused(
        *("fisher", "albert", "--data", "labelled.csv", "--label-field", "label"),
        "--stream-layers",
        unchanged=models,
        says=("one layer at a time", "more than once", "leave out --stream-layers"),
    )
