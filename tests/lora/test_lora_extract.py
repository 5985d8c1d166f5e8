"""`lora-extract`: the best factors of a difference, an adapter that PEFT and lora-merge apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.lora.extract import factors_of
from tests.commands.running import clmerge, refused
from tests.lora.peft_side import merged_by_peft, quiet, saved
from tests.lora.test_lora_merge import LINEARS, llama
from tests.lora.zoo import ZOO

WEIGHTS = "model.safetensors"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base and a model of which linears, norms and embedding changed, in float32."""
    model = llama(torch.float32)
    saved(model, tmp_path / "base")
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lm_head" not in name:
            parameter.data += torch.randn_like(parameter) * 0.02
    saved(model, tmp_path / "tuned")
    return tmp_path


def relative(found: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor) -> float:
    error = (found.double() - wanted.double()).norm() / (wanted.double() - base.double()).norm()
    return float(error)


def test_factors_are_the_best_of_their_rank() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(50, 30, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    found = factors_of(matrix.clone(), rank=7, energy=None)
    assert found.error == pytest.approx(float(values[7:].norm()), rel=1e-6)
    real = (matrix - found.up.double() @ found.down.double()).norm()
    assert found.error == pytest.approx(float(real), rel=1e-12)


def test_energy_gives_the_least_rank_that_keeps_it() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    kept = values.square().cumsum(0) / values.square().sum()
    for rank in (1, 2, 3):
        share = float(kept[rank - 1])
        found = factors_of(torch.diag(values), rank=None, energy=share - 1e-6)
        assert found.down.shape[0] == rank


def test_a_large_difference_of_low_rank_is_found_by_projection() -> None:
    torch.manual_seed(0)
    wide = torch.randn(1300, 5) @ torch.randn(5, 1100)
    for rank, energy in ((5, None), (None, 0.999999)):
        found = factors_of(wide.clone(), rank=rank, energy=energy)
        assert found.down.shape[0] == 5
        assert found.error < 1e-5 * found.norm


def test_extracted_and_merged_again_it_is_the_tuned_model_to_the_reported_error(
    place: Path,
) -> None:
    tuned, base, adapter = place / "tuned", place / "base", place / "adapter"
    result = clmerge("lora-extract", tuned, base, "--rank", "4", "-o", adapter, "--json")
    assert result.code == 0, result
    said = result.document
    assert clmerge("lora-merge", base, adapter, "-o", place / "merged").code == 0
    found, wanted, before = (load_file(place / p / WEIGHTS) for p in ("merged", "tuned", "base"))
    errors = {one["name"]: one["error"] / one["norm"] for one in said["tensors"]}
    assert sum(one["rank"] == 4 for one in said["tensors"]) == 2 * len(LINEARS)
    for name, error in errors.items():
        assert relative(found[name], wanted[name], before[name]) == pytest.approx(error, rel=1e-4)
    assert set(said["left_out"]) == {n for n in wanted if "norm" in n or "embed" in n}
    whole = [torch.cat([t[n].double().flatten() for n in wanted]) for t in (found, wanted, before)]
    assert relative(*whole) == pytest.approx(said["error"], rel=1e-4)


def test_at_full_rank_with_the_rest_it_is_the_tuned_model(place: Path) -> None:
    tuned, base, adapter = place / "tuned", place / "base", place / "adapter"
    command = ["lora-extract", tuned, base, "--energy", "1", "--embeddings", "--save-rest"]
    result = clmerge(*command, "-o", adapter, "--json")
    assert result.code == 0, result
    assert result.document["left_out"] == []
    assert result.document["error"] < 1e-6
    assert clmerge("lora-merge", base, adapter, "-o", place / "merged").code == 0
    found, wanted, before = (load_file(place / p / WEIGHTS) for p in ("merged", "tuned", "base"))
    changed = [name for name in wanted if not torch.equal(wanted[name], before[name])]
    assert max(relative(found[n], wanted[n], before[n]) for n in changed) < 1e-4
    again = clmerge(*command, "-o", adapter)
    assert again.code == 0
    assert "up to date" in again.err


@pytest.mark.parametrize("more", [[], ["--embeddings", "--save-rest"]])
def test_peft_loads_it_and_computes_what_the_merged_model_does(
    place: Path, more: list[str]
) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    tuned, base, adapter = place / "tuned", place / "base", place / "adapter"
    command = ["lora-extract", tuned, base, "--energy", "0.9", *more, "-o", adapter]
    assert clmerge(*command).code == 0
    assert json.loads((adapter / "adapter_config.json").read_text())["rank_pattern"]
    assert clmerge("lora-merge", base, adapter, "-o", place / "merged").code == 0
    tokens = torch.arange(12).reshape(2, 6)
    with quiet(), torch.no_grad():
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        plain = model(tokens).logits
        wrapped = PeftModel.from_pretrained(model, str(adapter))
        found = wrapped.eval()(tokens).logits
        merged = LlamaForCausalLM.from_pretrained(place / "merged", dtype=torch.float32)
        expected = merged(tokens).logits
    assert float((found - expected).norm()) < 1e-4 * float((plain - expected).norm())


def tuned_pair(place: Path, architecture: str) -> Any:
    """A tiny model as base, and as tuned with every parameter changed; returns the base model."""
    build = next(one.build for one in ZOO if one.name == architecture)
    model: Any = build().float()
    saved(model, place / "base")
    torch.manual_seed(3)
    other: Any = build().float()
    for parameter in other.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    saved(other, place / "tuned")
    return model


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("GPT2LMHeadModel", []),
        ("ResNetForImageClassification", ["--convolutions", "--dtype", "bfloat16"]),
        ("layers of torch", ["--convolutions", "--embeddings", "--exclude", "grouped*"]),
    ],
)
def test_peft_merges_what_was_extracted_of_other_layers_as_we_do(
    tmp_path: Path, architecture: str, more: list[str]
) -> None:
    model = tuned_pair(tmp_path, architecture)
    adapter, pair = tmp_path / "adapter", [tmp_path / "tuned", tmp_path / "base"]
    more += ["--exclude", "attn*"] if architecture == "layers of torch" else []
    result = clmerge("lora-extract", *pair, "--rank", "3", *more, "-o", adapter, "--json")
    assert result.code == 0, result
    assert clmerge("lora-merge", pair[1], adapter, "-o", tmp_path / "merged").code == 0
    found = load_file(tmp_path / "merged" / WEIGHTS)
    if architecture in ("GPT2LMHeadModel", "layers of torch"):
        model = next(one.build for one in ZOO if one.name == architecture)().float()
    with quiet():
        peft = merged_by_peft(model, [adapter], tmp_path / "peft")
    wanted, before = (load_file(path / WEIGHTS) for path in pair)
    factored = [one for one in result.document["tensors"] if one["kept"] == "factors"]
    kinds = {len(before[one["name"]].shape) for one in factored}
    assert kinds == {"GPT2LMHeadModel": {2}, "layers of torch": {2, 3, 5}}.get(architecture, {2, 4})
    for one in factored:
        name = one["name"]
        torch.testing.assert_close(found[name], peft[name], rtol=1e-5, atol=1e-6)
        error = relative(found[name], wanted[name], before[name])
        assert error == pytest.approx(one["error"] / one["norm"], rel=1e-3, abs=1e-5)
    stored = load_file(adapter / "adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {
        torch.bfloat16 if "bfloat16" in more else torch.float32
    }


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    tuned_pair(tmp_path, "MixtralForCausalLM")
    pair = [tmp_path / "tuned", tmp_path / "base"]
    command = ["lora-extract", *pair, "--rank", "2", "--exclude", "*q_proj*"]
    result = clmerge(*command, "-o", tmp_path / "adapter", "--json")
    assert result.code == 0, result
    reasons = {one["name"]: one["why"] for one in result.document["tensors"]}
    layer = "model.layers.0."
    experts = [why for name, why in reasons.items() if "experts" in name]
    assert experts
    assert all(
        "stacked experts" in str(why) or "weight" in str(why) or why is None for why in experts
    )
    assert reasons[f"{layer}self_attn.q_proj.weight"] == "not selected"
    assert "--embeddings" in reasons["model.embed_tokens.weight"]
    assert "--save-rest" in reasons[f"{layer}input_layernorm.weight"]
    assert reasons[f"{layer}self_attn.k_proj.weight"] is None
    told = clmerge(*command, "-o", tmp_path / "again").err
    assert "model.embed_tokens.weight: an embedding: --embeddings factors it" in told


def test_stacked_experts_are_left_out_by_name_or_saved_whole(tmp_path: Path) -> None:
    tuned_pair(tmp_path, "Qwen2MoeForCausalLM")
    for name in ("base", "tuned"):
        tensors = load_file(tmp_path / name / WEIGHTS)
        experts = "model.layers.0.mlp.experts"
        parts = [
            n for n in tensors if n.startswith(f"{experts}.") and n.endswith("down_proj.weight")
        ]
        tensors[f"{experts}.down_proj"] = torch.stack([tensors.pop(n) for n in sorted(parts)])
        save_file(tensors, tmp_path / name / WEIGHTS, {"format": "pt"})
    command = ["lora-extract", tmp_path / "tuned", tmp_path / "base", "--rank", "2"]
    result = clmerge(*command, "-o", tmp_path / "adapter", "--json")
    reasons = {one["name"]: one["why"] for one in result.document["tensors"]}
    assert "stacked experts" in reasons["model.layers.0.mlp.experts.down_proj"]


def test_names_that_a_version_of_transformers_changes_are_told(tmp_path: Path) -> None:
    tuned_pair(tmp_path, "ViTForImageClassification")
    command = ["lora-extract", tmp_path / "tuned", tmp_path / "base", "--rank", "2"]
    adapter = tmp_path / "adapter"
    result = clmerge(*command, "-o", adapter, "--json")
    assert any("versions of transformers" in note for note in result.document["notes"])
    assert (
        clmerge("lora-merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "m").code
        == 0
    )


def test_memory_threads_and_plan_are_those_of_other_commands(place: Path) -> None:
    pair = [place / "tuned", place / "base"]
    plan = clmerge("lora-extract", *pair, "--rank", "2", "--dry-run", "--json").document
    needed = plan["buffer_bytes"]
    assert plan["factored"] == 2 * len(LINEARS) + 1
    assert plan["device"] in ("cpu", "cuda")
    command = ["lora-extract", *pair, "--rank", "2", "--threads", "1", "--device", "cpu"]
    says = ("memory limit is too small", str(needed))
    small = ["--memory", str(needed - 1), "-o", place / "small"]
    refused(*command, *small, unchanged=place, says=says, code=2)
    before = torch.get_num_threads()
    assert clmerge(*command, "--memory", str(needed), "-o", place / "low").code == 0
    assert torch.get_num_threads() == before


def test_models_that_are_equal_or_of_other_shapes_are_refused(place: Path) -> None:
    base = place / "base"
    (place / "copy").mkdir()
    (place / "copy" / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes())
    out = place / "adapter"
    says: tuple[str, ...] = ("there is nothing to extract",)
    refused("lora-extract", place / "copy", base, "-o", out, unchanged=place, says=says)
    command = ["lora-extract", place / "tuned", base, "--rank", "2", "--energy", "0.5"]
    refused(*command, "-o", out, unchanged=place, says=("exclude each other",), code=2)
    before = sorted(place.rglob("*"))
    assert clmerge("lora-extract", place / "tuned", base, "--dry-run").code == 0
    assert sorted(place.rglob("*")) == before
