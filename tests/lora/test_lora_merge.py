"""`lora-merge` from the command line: exact sums, one rounding, records, continuation, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.running import clmerge
from tests.exactly import nearest
from tests.lora.peft_side import merged_by_peft, save_adapter, saved

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(dtype: torch.dtype = torch.float64) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with base, in float64, and two adapters."""
    saved(llama(), tmp_path / "base")
    save_adapter(llama(), tmp_path / "one", seed=1, r=4, lora_alpha=6, target_modules=LINEARS)
    save_adapter(llama(), tmp_path / "two", seed=2, r=3, lora_alpha=5, target_modules=["v_proj"])
    return tmp_path


def rounded(base: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in load_file(base).items()}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_a_merge_in_float64_is_pefts(place: Path) -> None:
    assert clmerge("lora-merge", place / "base", place / "one", "-o", place / "out").code == 0
    expected = merged_by_peft(llama(), [place / "one"], place / "peft")
    found = load_file(place / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert max(distance(found[name], expected[name]) for name in found) < 1e-12
    before = load_file(place / "base" / "model.safetensors")
    touched = [name for name in found if not torch.equal(found[name], before[name])]
    assert len(touched) == 2 * len(LINEARS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_rounded_merge_is_the_nearest_to_the_exact_one_and_nearer_than_pefts(
    place: Path, dtype: torch.dtype
) -> None:
    save_file(
        rounded(place / "base" / "model.safetensors", dtype), place / "base" / "x.safetensors"
    )
    (place / "base" / "x.safetensors").replace(place / "base" / "model.safetensors")
    assert clmerge("lora-merge", place / "base", place / "one", "-o", place / "out").code == 0
    found = load_file(place / "out" / "model.safetensors")

    def merged(own: torch.dtype) -> dict[str, torch.Tensor]:
        model = llama(own)
        model.load_state_dict(load_file(place / "base" / "model.safetensors"))
        return merged_by_peft(model, [place / "one"], place / str(own))

    exact, peft = merged(torch.float64), merged(dtype)
    errors = {"ours": 0.0, "peft": 0.0}
    for name, tensor in exact.items():
        assert found[name].dtype == dtype
        once = [nearest(value, dtype) for value in _fractions(tensor)]
        assert found[name].double().flatten().tolist() == once, name
        for side, values in (("ours", found), ("peft", peft)):
            errors[side] += float((values[name].double() - tensor).square().sum())
    assert errors["ours"] < errors["peft"]


def test_several_adapters_are_added_in_one_pass_with_their_scales(place: Path) -> None:
    command = ["lora-merge", place / "base", place / "one", place / "two", "--scale", "1,-0.5"]
    assert clmerge(*command, "-o", place / "out").code == 0
    found = load_file(place / "out" / "model.safetensors")
    adapters = [place / "one", place / "two"]
    expected = merged_by_peft(llama(), adapters, place / "peft", scales=[1.0, -0.5])
    assert max(distance(found[name], expected[name]) for name in found) < 1e-12


def test_the_record_says_the_rules_and_where_the_base_is(place: Path) -> None:
    result = clmerge("lora-merge", place / "base", place / "one", "-o", place / "out", "--json")
    assert result.document["verdict"]["lossy"] is False
    made = json.loads((place / "out" / "clmerge" / "manifest.json").read_text())
    assert [source["role"] for source in made["inputs"]] == ["input", "adapter"]
    name = "model.layers.0.self_attn.q_proj.weight"
    adapter = str(place / "one")
    assert made["edits"][name] == [
        {"adapter": adapter, "edit": "lowrank", "rule": "same name"},
    ]
    assert made["undo"]["path"] == str(place / "base")
    assert made["undo"]["tensors"].keys() == made["edits"].keys()
    assert clmerge("verify", place / "out").code == 0
    assert clmerge("lora-merge", place / "base", place / "one", "-o", place / "out").code == 0
    assert (
        "up to date"
        in clmerge("lora-merge", place / "base", place / "one", "-o", place / "out").err
    )
    changed = clmerge("lora-merge", place / "base", place / "two", "-o", place / "out")
    assert changed.code == 1


def _fractions(tensor: torch.Tensor) -> list[Any]:
    from tests.exactly import fractions

    return fractions(tensor.flatten())
