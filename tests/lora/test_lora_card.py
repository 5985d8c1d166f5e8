"""What the model card says of a merge of adapters, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.running import clmerge
from tests.lora.peft_side import save_adapter, saved


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    saved(llama(), tmp_path / "base")
    for seed, name in enumerate(("one", "two")):
        save_adapter(llama(), tmp_path / name, seed=seed, r=2, target_modules=["v_proj"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(folder: str) -> str:
    made = json.loads(Path(folder, "clmerge/manifest.json").read_text())
    return str(made["outputs"][0]["weights_digest"])


def test_the_card_names_adapters_scales_and_a_command_that_makes_it_again(place: Path) -> None:
    line = ("lora-merge", "base", "one", "two", "--scale", "1,-0.5", "--dtype", "bfloat16")
    assert clmerge(*line, "-o", "first").code == 0
    card = Path("first/README.md").read_text()
    again = card.split("```sh\n")[1].split("\n```")[0]
    assert again == "clmerge lora-merge base one two --scale 1,-0.5 --dtype bfloat16"
    assert clmerge(*shlex.split(again)[1:], "-o", "second").code == 0
    assert digest("first") == digest("second")
    for scale in ("scale 1 |", "scale -0.5 |"):
        assert scale in card
