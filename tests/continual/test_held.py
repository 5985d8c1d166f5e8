"""What a training loop of one's own calls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.held import HeldBack
from tests.continual import toys

PAGE = Path(__file__).parents[2] / "docs/ewc.md"


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def protection_of(model: nn.Module) -> Protection:
    """Of this very model: its anchor is where it is now."""
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fisher = toys.protection(shapes={name: tuple(t.shape) for name, t in anchor.items()}).fisher
    return Protection(fisher, anchor)


def test_the_loop_on_the_page_holds_the_model_back(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (loop,) = [block for block in blocks if "HeldBack" in block]
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(8, 6, generator=generator) for _ in range(20)]
    moved = {}
    for strength in ("0.0", "100.0"):
        model = network()
        protection = protection_of(model)
        names: dict[str, Any] = {
            "torch": torch,
            "model": model,
            "protection": protection,
            "batches": batches,
            "loss_of": lambda model, batch: (model(batch) - 3).square().mean(),
            "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05),
        }
        exec(loop.replace("100.0", strength), names)
        moved[strength] = HeldBack(model, protection, 1.0).penalty()
    assert capsys.readouterr().out == "1.0\n1.0\n"
    assert moved["100.0"] < moved["0.0"] / 100


@pytest.mark.parametrize("update", ["coupled", "proximal"])
def test_each_update_acts_at_its_own_moment(update: Any) -> None:
    model = network()
    held = HeldBack(model, pulling_to_zero(model), 1.0, update)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    held.before_step()
    assert all((p.grad is None) == (update == "proximal") for p in model.parameters())
    held.after_step(optimizer)
    unmoved = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(unmoved) == (update == "coupled")


def pulling_to_zero(model: nn.Module) -> Protection:
    """Pulls every weight to 0."""
    like = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    return Protection(like, {name: torch.zeros_like(tensor) for name, tensor in like.items()})
