"""Which weights of a base model an adapter moves, and how."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from mergekit_cl.continual.adapted import adapted
from mergekit_cl.continual.ewc import Protection, penalty_value
from mergekit_cl.continual.held import HeldBack
from mergekit_cl.errors import MismatchError, OptionError
from tests.continual import toys

LINEAR = ["q_proj", "down_proj"]


def llama(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **config})).double()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=4)).double()


def with_lora(model: Any, *, adapters: int = 1, **config: Any) -> Any:
    """A PEFT model in float64, every factor random; several adapters all active."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tied weights, deprecations between libraries
        torch.manual_seed(3)
        wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, **config))
        for number in range(1, adapters):
            wrapped.add_adapter(f"more{number}", LoraConfig(r=2 + number, **config))
        if adapters > 1:
            wrapped.base_model.set_adapter(["default", *(f"more{n}" for n in range(1, adapters))])
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64) / 4
    return wrapped


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (llama, {"target_modules": LINEAR}),
    "rslora": (llama, {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": (llama, {"target_modules": LINEAR, "alpha_pattern": {"q_proj": 11}}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "three adapters": (llama, {"target_modules": LINEAR, "adapters": 3}),
    "modules to save": (llama, {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
    "biases": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
}


def trained_by(case: str) -> tuple[Any, Protection]:
    make, config = CASES[case]
    base = make()
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    return with_lora(base, **config), toys.protection(shapes=shapes, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_the_penalty_is_that_of_the_merged_model(case: str) -> None:
    wrapped, protection = trained_by(case)
    held = HeldBack(wrapped, protection, 0.7)
    merged = copy.deepcopy(wrapped).merge_and_unload(
        adapter_names=list(wrapped.base_model.active_adapters)
    )
    parameters = dict(merged.named_parameters())
    assert parameters.keys() == adapted(wrapped).parameters.keys()
    expected = penalty_value(parameters, protection, 0.7)
    assert held.penalty() == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_the_merged_weights(case: str) -> None:
    wrapped, protection = trained_by(case)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    loss: Any = 0.0
    root = wrapped.get_base_model()
    for name, fisher in protection.fisher.items():
        weight = adapted(wrapped).parameters[name]
        layer = root.get_submodule(name.rpartition(".")[0])
        if name.endswith(".weight") and hasattr(layer, "get_delta_weight"):
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter)
        loss = loss + 0.7 / 2 * (fisher * (weight - protection.anchor[name]) ** 2).sum()
    expected = torch.autograd.grad(loss, list(trained.values()))
    HeldBack(wrapped, protection, 0.7).before_step()
    for (name, parameter), wanted in zip(trained.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-9, msg=name)


def test_without_adapters_they_are_the_parameters_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    found = adapted(model)
    assert dict(model.named_parameters()) == found.parameters
    assert found.lowrank == ()


def test_a_weight_that_is_tied_is_protected_by_its_one_name() -> None:
    wrapped = with_lora(llama(tie_word_embeddings=True), target_modules=["embed_tokens"])
    (weight,) = adapted(wrapped).lowrank
    assert weight.name == "model.embed_tokens.weight"


def test_coverage_counts_weights_that_factors_move() -> None:
    wrapped, protection = trained_by("linear")
    coverage = HeldBack(wrapped, protection, 1.0).coverage
    assert len(coverage.protected) == 4
    assert coverage.unprotected == ()
    assert "model.norm.weight" in coverage.frozen


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True, "target_modules": LINEAR}, "Dora"),
        ({"lora_bias": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}, "lora_bias"),
        ({"target_modules": LINEAR, "trainable_token_indices": [1, 2]}, "TrainableTokensLayer"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": []}, "ParamWrapper"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    wrapped = with_lora(gpt2() if "fan_in_fan_out" in config else llama(), **config)
    with pytest.raises(OptionError) as caught:
        adapted(wrapped)
    assert said in str(caught.value.detail)


def test_merged_adapters_are_refused() -> None:
    wrapped = with_lora(llama(), target_modules=LINEAR)
    wrapped.merge_adapter()
    with pytest.raises(OptionError, match="plain LoRA"):
        adapted(wrapped)


def test_low_rank_factors_have_no_proximal_update() -> None:
    wrapped, protection = trained_by("linear")
    with pytest.raises(OptionError, match="closed form"):
        HeldBack(wrapped, protection, 1.0, "proximal")


def test_a_protection_that_reaches_nothing_is_refused_before_training() -> None:
    wrapped = with_lora(llama(), target_modules=LINEAR)
    elsewhere = toys.protection(shapes={"model.norm.weight": (16,)})
    with pytest.raises(MismatchError, match="no trained parameter"):
        HeldBack(wrapped, elsewhere, 1.0)
