"""Adapters merged by torch, by compiled kernels and through a ring of slots: the same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeBackend
from ring_cases import Made, on_cpu, on_ring, plan_of, run
from safetensors.torch import save_file

from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.divergence.sums import total
from mergekit_cl.lora.adapter import open_adapter
from mergekit_cl.methods.lora import lora_method
from mergekit_cl.plan import Plan

ROWS, COLUMNS, RANK = 300, 1100, 5  # three blocks, which cut rows
Factors = dict[str, torch.Tensor]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def normal(seed: int, *shape: int, size: float = 0.1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def low_rank(seed: int, down: str = "lora_A.weight", up: str = "lora_B.weight") -> Factors:
    return {f"w.{down}": normal(seed, RANK, COLUMNS), f"w.{up}": normal(seed + 1, ROWS, RANK)}


def transposed(seed: int) -> Factors:
    down, up = normal(seed, RANK, ROWS), normal(seed + 1, COLUMNS, RANK)
    return {"w.lora_A.weight": down, "w.lora_B.weight": up}


def with_magnitude(factors: Factors, length: int) -> Factors:
    return {**factors, "w.lora_magnitude_vector": 1 + normal(9, length).abs()}


CASES: dict[str, tuple[list[Factors], dict[str, Any]]] = {
    "low rank": ([low_rank(1)], {}),
    "transposed": ([transposed(1)], {}),
    "two": ([low_rank(1), low_rank(3)], {}),
    "DoRA by rows": ([with_magnitude(low_rank(1), ROWS)], {"use_dora": True}),
    "DoRA by columns": ([with_magnitude(transposed(1), COLUMNS)], {"use_dora": True}),
    "rows replaced": (
        [{**low_rank(1), "w.token_adapter.trainable_tokens_delta": normal(5, 3, COLUMNS)}],
        {"trainable_token_indices": {"w": [7, 299, 0]}},
    ),
    "replaced and changed": ([{**low_rank(1), "w.weight": normal(5, ROWS, COLUMNS)}], {}),
}


def write(place: Path, name: str, dtype: torch.dtype) -> tuple[Path, list[Path]]:
    factors, config = CASES[name]
    base = place / "base"
    base.mkdir()
    weight = normal(0, ROWS, COLUMNS, size=1.0)
    weight[0, ::5] = -0.0
    save_file(
        {"w.weight": weight.to(dtype), "norm.weight": normal(8, 70).to(dtype)},
        base / "model.safetensors",
    )
    adapters = []
    for number, own in enumerate(factors):
        adapters.append(place / f"a{number}")
        adapters[-1].mkdir()
        tensors = {f"base_model.model.{key}": value for key, value in own.items()}
        save_file(tensors, adapters[-1] / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 7, "target_modules": ["w"], **config}
        (adapters[-1] / "adapter_config.json").write_text(json.dumps(said))
    return base, adapters


def plan(place: Path, name: str, dtype: torch.dtype, **options: Any) -> Plan:
    base, adapters = write(place, name, dtype)
    method = lora_method(
        open_checkpoint(base),
        [open_adapter(path) for path in adapters],
        scales=None,
        undo="none",
        allow_other_base=False,
        carry=False,
    )
    return plan_of(method, **options)


def assert_same(one: Made, other: Made) -> None:
    assert (one.written, one.residual) == (other.written, other.residual)
    assert one.result.pieces == other.result.pieces
    assert one.result.operand_pieces == other.result.operand_pieces
    ours, theirs = (
        asdict(total([block[0] for block in made.result.block_sums])) for made in (one, other)
    )
    for metric, value in theirs.items():
        assert ours[metric] == (value if value is None else pytest.approx(value, rel=1e-9)), metric


def compiled(made: Plan) -> Made:
    worker = BlockWorker(report=True, allow_nonfinite=False, compiled=True)
    worker._merge = _unreachable  # type: ignore[method-assign]
    return run(worker, made, "w.weight")


def _unreachable(*arguments: Any) -> Any:
    raise AssertionError("a block was not compiled")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("carry", [False, True], ids=["", "carry"])
def test_bytes_do_not_depend_on_what_computes_them(
    tmp_path: Path, case: str, dtype: torch.dtype, carry: bool
) -> None:
    made = plan(tmp_path, case, dtype, carry=carry)
    usual = on_cpu(made, name="w.weight")
    if dtype != torch.float64:
        assert_same(compiled(made), usual)
    for chunk in (BLOCK, 3 * BLOCK):
        assert_same(on_ring(made, FakeBackend(), name="w.weight", chunk=chunk), usual)
