"""Experts that one side stacks and the other stores one by one, and both orders of lora_B."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.lora.merging import merge

EXPERTS, RANK, WIDTH, INNER = 3, 2, 5, 4
OWNER = "model.layers.0.mlp.experts"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def write(
    place: Path, base: dict[str, Tensor], adapter: dict[str, Tensor], **config: object
) -> None:
    for name in ("base", "adapter"):
        (place / name).mkdir()
    save_file(base, place / "base" / "model.safetensors", {"format": "pt"})
    save_file(adapter, place / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, **config}
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(said))


def merged(place: Path) -> dict[str, Tensor]:
    merge(place / "base", [place / "adapter"], place / "out")
    return load_file(place / "out" / "model.safetensors")


@pytest.mark.parametrize("layout", [None, "rank_major", "grouped_by_expert"])
def test_columns_of_lora_b_are_read_in_the_order_that_the_config_says(
    tmp_path: Path, layout: str | None
) -> None:
    torch.manual_seed(0)
    weight = random(EXPERTS, WIDTH, INNER)
    down, up = random(EXPERTS, RANK, INNER), random(EXPERTS, WIDTH, RANK)
    order = (1, 0, 2) if layout == "grouped_by_expert" else (1, 2, 0)
    factors = {
        f"base_model.model.{OWNER}.lora_A.weight": down.reshape(-1, INNER),
        f"base_model.model.{OWNER}.lora_B.weight": up.permute(order).reshape(WIDTH, -1).clone(),
    }
    config = {"target_parameters": ["experts.down_proj"], "lora_B_layout": layout}
    write(tmp_path, {f"{OWNER}.down_proj": weight}, factors, **config)
    found = merged(tmp_path)[f"{OWNER}.down_proj"]
    torch.testing.assert_close(found, weight + up @ down, rtol=1e-13, atol=1e-14)


def test_factors_of_single_experts_are_added_to_a_stack(tmp_path: Path) -> None:
    """An adapter of transformers 4 and a file that stacks its experts."""
    torch.manual_seed(0)
    weight = random(EXPERTS, 2 * INNER, WIDTH)
    expected = weight.clone()
    factors = {}
    for expert in range(EXPERTS):
        for number, part in enumerate(("w1", "w3")):
            down, up = random(RANK, WIDTH), random(INNER, RANK)
            key = f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{part}"
            factors[f"{key}.lora_A.weight"], factors[f"{key}.lora_B.weight"] = down, up
            expected[expert, number * INNER : (number + 1) * INNER] += up @ down
    write(tmp_path, {f"{OWNER}.gate_up_proj": weight}, factors)
    found = merged(tmp_path)[f"{OWNER}.gate_up_proj"]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_factors_of_a_stack_are_added_to_single_experts_of_older_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = "model.layers.0.block_sparse_moe.experts"
    base = {f"{old}.{e}.{p}.weight": random(INNER, WIDTH) for e in range(EXPERTS) for p in "13"}
    base = {name.replace(".1.weight", ".w1.weight"): t for name, t in base.items()}
    base = {name.replace(".3.weight", ".w3.weight"): t for name, t in base.items()}
    down, up = random(EXPERTS, RANK, WIDTH), random(EXPERTS, 2 * INNER, RANK)
    factors = {
        f"base_model.model.{OWNER}.lora_A.weight": down.reshape(-1, WIDTH),
        f"base_model.model.{OWNER}.lora_B.weight": up.permute(1, 2, 0).reshape(2 * INNER, -1),
    }
    write(tmp_path, base, factors, target_parameters=["experts.gate_up_proj"])
    found = merged(tmp_path)
    for expert in range(EXPERTS):
        product = up[expert] @ down[expert]
        for part, rows in (("w1", product[:INNER]), ("w3", product[INNER:])):
            name = f"{old}.{expert}.{part}.weight"
            torch.testing.assert_close(found[name], base[name] + rows, rtol=1e-13, atol=1e-14)
