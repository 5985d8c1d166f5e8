"""transformers loads every output: no key missing, none unexpected, the averaged numbers inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.running import clmerge
from tests.tiny_models import (
    save_as_bin,
    tiny_bert_classifier,
    tiny_gpt2,
    tiny_llama,
    tiny_mixtral,
)

Make = Callable[[Path, int], Any]


def saved(make: Callable[..., Any], **options: Any) -> Make:
    return lambda path, seed: make(path, seed=seed, **options)


def as_bin(make: Callable[..., Any], **options: Any) -> Make:
    def save(path: Path, seed: int) -> Any:
        model = make(path.with_name(f"{path.name}-first"), seed=seed, **options)
        save_as_bin(model, path)
        return model

    return save


MODELS: dict[str, Make] = {
    "llama": saved(tiny_llama),
    "llama tied": saved(tiny_llama, tied=True),
    "llama bf16 in shards": saved(tiny_llama, dtype=torch.bfloat16, shard_size="8KB"),
    "gpt2": saved(tiny_gpt2),
    "bert classifier": saved(tiny_bert_classifier),
    "mixtral": saved(tiny_mixtral),
    "llama tied as .bin": as_bin(tiny_llama, tied=True),
    "gpt2 as .bin": as_bin(tiny_gpt2),
}


def load(path: Path, like: Any) -> Any:
    model, told = type(like).from_pretrained(path, output_loading_info=True, dtype="auto")
    assert not any(told.values()), told
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("more", [(), ("--shard-size", "6KB"), ("--dtype", "float16")])
def test_transformers_loads_the_merge_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: tuple[str, ...]
) -> None:
    one, two = (MODELS[name](tmp_path / folder, seed) for folder, seed in (("a", 1), ("b", 2)))
    monkeypatch.chdir(tmp_path)
    assert clmerge("linear-merge", "a", "b", "--weights", "1,3", *more).code == 0
    sharded = len(list(Path("merged").glob("*.safetensors"))) > 1
    assert sharded == (more[:1] == ("--shard-size",))
    merged = load(tmp_path / "merged", one)
    dtype = torch.float16 if "float16" in more else one.dtype
    assert merged.dtype == dtype
    first, second = one.state_dict(), two.state_dict()
    for key, tensor in merged.state_dict().items():
        exact = (first[key].double() + 3 * second[key].double()) / 4
        slack = {torch.float32: 3e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        torch.testing.assert_close(tensor.double(), exact, rtol=slack, atol=slack / 4)
    assert len(list(merged.parameters())) == len(list(one.parameters()))


def test_the_tokenizer_of_the_first_model_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tiny_llama(tmp_path / "a", seed=1)
    tiny_llama(tmp_path / "b", seed=2)
    monkeypatch.chdir(tmp_path)
    assert clmerge("linear-merge", "a", "b").code == 0
    text = "the cat sat on the mat ."
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("merged", "a"))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template
