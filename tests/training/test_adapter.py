"""The Fisher of W with an adapter applied: the values change, the names stay."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import ClmergeError
from mergekit_cl.training import adapter as adapter_module
from mergekit_cl.training.model import BuiltModel, build
from tests.tiny_models import tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_mixtral


def make_adapter(model: Any, folder: Path, *, seed: int = 7, **options: Any) -> dict[str, Any]:
    """Save a LoRA adapter with random A and B, and return its tensors."""
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and transformers about each other
        wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, **options))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        wrapped.save_pretrained(folder)
    return load_file(folder / "adapter_model.safetensors")


def built(path: Path, **options: Any) -> BuiltModel:
    with open_checkpoint(path) as checkpoint:
        return build(checkpoint, **options)


def refusal(path: Path, adapter: Path) -> ClmergeError:
    with pytest.raises(ClmergeError) as caught:
        built(path, adapter=adapter)
    return caught.value


def test_the_weights_are_those_of_the_formula_and_the_names_those_of_the_base(
    tmp_path: Path,
) -> None:
    base = tiny_llama(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    model = built(tmp_path / "base", adapter=tmp_path / "adapter")
    stored = dict(model.by_file(dict(model.model.named_parameters())))
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{path}.lora_A.weight" in adapter:
            a, b = adapter[f"{path}.lora_A.weight"], adapter[f"{path}.lora_B.weight"]
            expected = (weight.double() + 3.0 * (b.double() @ a.double())).float()
            assert not torch.equal(stored[name], weight)
            torch.testing.assert_close(stored[name].detach(), expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(stored[name], weight)


def test_a_transposed_layer_gets_a_transposed_update(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    weight = load_file(tmp_path / "base" / "model.safetensors")[
        "transformer.h.1.attn.c_attn.weight"
    ]
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True
    )
    path = "base_model.model.transformer.h.1.attn.c_attn"
    delta = adapter[f"{path}.lora_B.weight"] @ adapter[f"{path}.lora_A.weight"]
    model = built(tmp_path / "base", adapter=tmp_path / "adapter").model
    torch.testing.assert_close(
        model.transformer.h[1].attn.c_attn.weight.detach(), weight + 3.0 * delta.T
    )


def test_a_head_saved_whole_with_the_adapter_replaces_the_head(tmp_path: Path) -> None:
    base = tiny_bert_classifier(tmp_path / "base")
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS"
    )
    model = built(tmp_path / "base", adapter=tmp_path / "adapter")
    expected = adapter["base_model.model.classifier.weight"]
    assert torch.equal(model.model.classifier.weight, expected)
    assert model.names["classifier.weight"] == "classifier.weight"


def test_the_compute_dtype_is_reached_by_one_rounding_after_the_update(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    full = built(tmp_path / "base", adapter=tmp_path / "adapter").model
    half = built(tmp_path / "base", adapter=tmp_path / "adapter", dtype=torch.bfloat16).model
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32


def test_experts_are_still_taken_apart_with_an_adapter_on_the_attention(tmp_path: Path) -> None:
    base = tiny_mixtral(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    model = built(tmp_path / "base", adapter=tmp_path / "adapter")
    names = dict(model.by_file(dict(model.model.named_parameters())))
    assert names.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()


def test_an_adapter_tensor_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    extra = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**adapter, extra: torch.ones(2, 16)}, file, metadata={"format": "pt"})
    error = refusal(tmp_path / "base", tmp_path / "adapter")
    assert extra in (error.detail or "")


def test_an_adapter_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    gone = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    kept = {name: values for name, values in adapter.items() if name != gone}
    save_file(kept, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert gone in (refusal(tmp_path / "base", tmp_path / "adapter").detail or "")


def test_an_adapter_tensor_that_is_not_in_the_model_as_stored_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    wrap = adapter_module._wrap

    def wrap_badly(model: Any, folder: Path) -> Any:
        wrapped = wrap(model, folder)
        name = next(name for name, _ in wrapped.named_parameters() if "lora_B" in name)
        wrapped.get_parameter(name).data.zero_()
        return wrapped

    monkeypatch.setattr(adapter_module, "_wrap", wrap_badly)
    assert "lora_B" in (refusal(tmp_path / "base", tmp_path / "adapter").detail or "")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base")
    other = tiny_llama(tmp_path / "other", hidden_size=32)
    make_adapter(other, tmp_path / "adapter", target_modules=["q_proj"])
    assert "does not fit" in refusal(tmp_path / "base", tmp_path / "adapter").message


def test_an_adapter_of_a_free_head_that_carries_the_head_is_used_whole(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    head = load_file(tmp_path / "base" / "model.safetensors")["lm_head.weight"]
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    path = "base_model.model.lm_head"
    assert f"{path}.base_layer.weight" in adapter  # peft saves the embeddings it targets
    delta = adapter[f"{path}.lora_B.weight"] @ adapter[f"{path}.lora_A.weight"]
    model = built(tmp_path / "base", adapter=tmp_path / "adapter").model
    torch.testing.assert_close(model.lm_head.weight.detach(), head + 3.0 * delta)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_of_a_tied_weight_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", tied=True)
    free = tiny_llama(tmp_path / "free")
    make_adapter(free, tmp_path / "adapter", **options)
    error = refusal(tmp_path / "base", tmp_path / "adapter")
    assert "lora-merge" in (error.hint or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_adapters_that_are_not_plain_updates_are_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    base = tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert said in (refusal(tmp_path / "base", tmp_path / "adapter").detail or "")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    assert "adapter_config.json" in (refusal(tmp_path, tmp_path).detail or "")
