"""Parameters that share one tensor of the file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mergekit_cl.training import fused
from mergekit_cl.training.fused import Fused, find_fused, layer_of

PARAMETERS = {
    "layers.0.q": torch.arange(4.0).reshape(2, 2),
    "layers.0.k": torch.arange(4.0, 8.0).reshape(2, 2),
    "layers.1.q": torch.arange(8.0, 12.0).reshape(2, 2),
    "layers.1.k": torch.arange(12.0, 16.0).reshape(2, 2),
}
MODEL: Any = SimpleNamespace(get_parameter=PARAMETERS.__getitem__)


def joined(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file keeps q and k of a layer in one tensor, as some projections are kept."""
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    return {
        f"{layer}.qk": torch.cat([tensors[n] for n in tensors if n.startswith(layer)])
        for layer in layers
    }


def test_parameters_of_one_file_tensor_go_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "revert", joined)
    stored = joined(MODEL, PARAMETERS)

    def is_stored(name: str, values: torch.Tensor) -> str | None:
        same = values.shape == stored[name].shape and torch.equal(values, stored[name])
        return f"file.{name}" if same else None

    groups = find_fused(MODEL, list(PARAMETERS), is_stored)
    assert groups == (
        Fused(("layers.0.q", "layers.0.k"), {"layers.0.qk": "file.layers.0.qk"}),
        Fused(("layers.1.q", "layers.1.k"), {"layers.1.qk": "file.layers.1.qk"}),
    )
    squares = {name: values**2 for name, values in PARAMETERS.items()}
    ((name, values),) = groups[1].take_apart(squares, MODEL)
    assert name == "file.layers.1.qk"
    assert torch.equal(values, torch.arange(8.0, 16.0).reshape(4, 2) ** 2)


def test_parameters_whose_parts_are_not_in_the_file_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "revert", joined)
    assert find_fused(MODEL, list(PARAMETERS), lambda *_: None) == ()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.experts.0.up.weight", "model.layers.3"),
        ("lm_head.weight", ""),
        ("h.0.attn.bias", "h.0"),
    ],
)
def test_a_layer_is_named_up_to_its_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer
