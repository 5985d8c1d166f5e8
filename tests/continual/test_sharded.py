"""EWC on FSDP2's shards is EWC on the whole model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.held import HeldBack
from tests.continual import toys
from tests.processes import together


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # Rows that two processes cannot share evenly among them.
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def step(model: nn.Module, protection: Protection, update: Any) -> Any:
    """One step; what is held back, the penalty's parts before it, the weights after it."""
    held = HeldBack(model, protection, 4.0, update)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    before = held.measured()
    model(torch.arange(12.0).view(2, 6) / 6).square().sum().backward()
    held.before_step()
    optimizer.step()
    held.after_step(optimizer)
    after = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()
        for name, p in model.named_parameters()
    }
    return held.coverage, before, after


def _sharded(rank: int, model: nn.Sequential, protection: Protection, update: str) -> Any:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model)
    return step(model, protection, update)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["coupled", "proximal"])
def test_a_sharded_step_is_the_whole_model_s(update: str, tmp_path: Path) -> None:
    model = network()
    protection = toys.protection(shapes={n: tuple(p.shape) for n, p in model.named_parameters()})
    coverage, (value, square), weights = step(copy.deepcopy(model), protection, update)
    found = together(2, _sharded, tmp_path, model, protection, update)
    assert sum(one[1][0] for one in found) == pytest.approx(value, rel=1e-6)
    assert sum(one[1][1] for one in found) == pytest.approx(square, rel=1e-6)
    for reached, _, after in found:
        assert reached.mass == pytest.approx(coverage.mass, rel=1e-6)
        assert reached.share == coverage.share == 1
        for name, expected in weights.items():
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)
