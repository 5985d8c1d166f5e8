"""A model that is told to save memory by repeating its layers does so while it is estimated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fisher.accumulator import Accumulator
from tests.fisher.zoo import ZOO, build, ragged


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM", "OPTForCausalLM"])
def test_layers_are_repeated_and_nothing_else_changes(name: str, reentrant: bool) -> None:
    architecture = next(a for a in ZOO if a.name == name)
    model: Any = build(architecture)  # in training mode, OPT with dropout within its layers
    rows = ragged(architecture)

    def estimate() -> dict[str, torch.Tensor]:
        accumulator = Accumulator(model, estimator="empirical", include=lambda n: "embed" not in n)
        accumulator.add(rows)
        assert accumulator.single_because is None
        return accumulator.result().diagonal

    plain = estimate()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layers = model.model.decoder.layers if name.startswith("OPT") else model.model.layers
    functions = [layer._gradient_checkpointing_func for layer in layers]
    repeated = []
    layers[0].self_attn.register_forward_hook(lambda *_: repeated.append(layers[0].training))
    saved = estimate()
    assert repeated == [False] * 2 * 2  # the probe and the batch, twice each
    assert all(torch.equal(saved[name], plain[name]) for name in plain)
    assert all(module.training for module in model.modules())
    assert [layer._gradient_checkpointing_func for layer in layers] == functions


def test_no_gradient_is_kept_of_any_parameter() -> None:
    architecture = ZOO[0]
    model = build(architecture)
    present: list[bool] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: present.append(p.grad is not None))
    Accumulator(model, estimator="empirical").add(ragged(architecture))
    assert present == []
