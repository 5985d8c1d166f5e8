"""Heads tied to embeddings, and vocabularies of another size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.errors import MismatchError
from tests.lora.merging import merge

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write(place: Path, *names: str, rows: int, tied: bool) -> None:
    """A base of 6 tokens, and an adapter that brings tensors of `rows` of them."""
    torch.manual_seed(0)
    (place / "base").mkdir()
    (place / "adapter").mkdir()
    stored = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    base = {name: torch.randn(6, 4) for name in stored}
    save_file(base, place / "base" / "model.safetensors", {"format": "pt"})
    config = {"vocab_size": 6, "tie_word_embeddings": tied, "architectures": ["LlamaForCausalLM"]}
    (place / "base" / "config.json").write_text(json.dumps(config))
    own = torch.randn(rows, 4)
    brought = {f"base_model.model.{name}": own.clone() for name in names}
    save_file(brought, place / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    (place / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def made(place: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    merge(place / "base", [place / "adapter"], place / "out")
    config = json.loads((place / "out" / "config.json").read_text())
    return load_file(place / "out" / "model.safetensors"), config


def test_a_tied_vocabulary_of_another_size_stays_tied_and_changes_the_config(
    tmp_path: Path,
) -> None:
    write(tmp_path, EMBEDDING, HEAD, rows=8, tied=True)
    tensors, config = made(tmp_path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {EMBEDDING: (8, 4)}
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (8, True)


def test_an_embedding_alone_unties_its_head(tmp_path: Path) -> None:
    write(tmp_path, EMBEDDING, rows=6, tied=True)
    tensors, config = made(tmp_path)
    before = load_file(tmp_path / "base" / "model.safetensors")[EMBEDDING]
    assert torch.equal(tensors[HEAD], before)
    assert not torch.equal(tensors[EMBEDDING], before)
    assert config["tie_word_embeddings"] is False


def test_a_part_of_a_vocabulary_cannot_change_its_size(tmp_path: Path) -> None:
    write(tmp_path, EMBEDDING, rows=8, tied=False)
    with pytest.raises(MismatchError, match="a part of the vocabulary"):
        merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
