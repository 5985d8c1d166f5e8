"""Rows, tokenizer and model together: what a row gives does not depend on its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.training.data import choose, read_rows
from mergekit_cl.training.encode import encode
from mergekit_cl.training.model import build
from mergekit_cl.training.tokenizer import load_tokenizer, pad_id
from tests.tiny_models import (
    TEXTS,
    tiny_bert_classifier,
    tiny_gpt2,
    tiny_llama,
    tiny_llama_classifier,
    tiny_mixtral,
)


@pytest.mark.parametrize(
    "make", [tiny_llama, tiny_gpt2, tiny_mixtral, tiny_bert_classifier, tiny_llama_classifier]
)
def test_the_logits_of_a_row_do_not_depend_on_padding(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "model")
    data = tmp_path / "data.txt"
    data.write_text("\n\n".join(TEXTS))
    rows = choose(read_rows([data], passage=48), 100).rows
    assert len(rows) == len(TEXTS)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        tokenizer = load_tokenizer(checkpoint.root)
        config = checkpoint.config or {}
        built = build(checkpoint, pad_id=pad_id(tokenizer, config))
        encoded = encode(rows, tokenizer, task=built.kind, config=config, max_length=64)
    (batch,) = encoded.batches(len(rows))
    assert int(batch.inputs["attention_mask"].min()) == 0
    with torch.no_grad():
        together = built.model(**batch.inputs).logits
        for index, alone in enumerate(encoded.batches(1)):
            logits = built.model(**alone.inputs).logits[0]
            beside = together[index][: len(logits)] if logits.dim() == 2 else together[index]
            torch.testing.assert_close(beside, logits, rtol=1e-5, atol=1e-5)


def test_a_long_row_and_a_model_are_read_without_a_word_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_llama(tmp_path / "model", max_position_embeddings=8)
    data = tmp_path / "data.txt"
    data.write_text(" ".join(TEXTS))
    capfd.readouterr()
    tokenizer = load_tokenizer(tmp_path / "model")
    tokenizer.model_max_length = 8
    encoded = encode(list(read_rows([data])), tokenizer, task="causal-lm", config={}, max_length=64)
    assert (encoded.truncated, encoded.longest) == (1, 8)
    assert capfd.readouterr() == ("", "")
