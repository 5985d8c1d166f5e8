"""EWC through compiled code gives what the formulas give that take a pass for each operation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from making import same_bits

from mergekit_cl.continual import ewc, proximal
from mergekit_cl.continual.compiled import are_compiled
from mergekit_cl.continual.ewc import Protection, add_penalty_gradient
from mergekit_cl.continual.proximal import proximal_step

SIZE = 2**17 + 4099
F32, BF16 = torch.float32, torch.bfloat16
Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def draw(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def held(dtype: torch.dtype, stored: torch.dtype) -> tuple[torch.nn.Parameter, Protection]:
    """Weights with a gradient; some without a Fisher, with a huge one, or at their anchor."""
    weight = torch.nn.Parameter(draw(0, dtype))
    weight.grad = draw(1, dtype)
    fisher, anchor = draw(2, stored).square(), draw(3, stored)
    fisher[::5], fisher[1::997] = 0, 1e30
    anchor[::11] = weight.detach()[::11].to(stored)
    return weight, Protection({"w": fisher}, {"w": anchor})


def both(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What it gives by compiled code, and by the formulas."""
    fast = run()
    for module in (ewc, proximal):
        monkeypatch.setattr(module, "are_compiled", lambda columns: False)
    return fast, run()


@pytest.mark.parametrize("stored", [F32, BF16])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_coupled_pull(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, stored: torch.dtype
) -> None:
    def run() -> torch.Tensor:
        weight, protection = held(dtype, stored)
        add_penalty_gradient({"w": weight}, protection, 0.37)
        assert weight.grad is not None
        return weight.grad

    assert same_bits(*both(monkeypatch, run))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
        lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-6),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    ],
)
@pytest.mark.parametrize("stored", [F32, BF16])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_proximal_step(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, stored: torch.dtype, make: Optimizer
) -> None:
    def run() -> torch.Tensor:
        weight, protection = held(dtype, stored)
        optimizer = make([weight])
        optimizer.step()
        proximal_step(optimizer, {"w": weight}, protection, 30.0)
        return weight.detach()

    fast, slow = both(monkeypatch, run)
    assert bool(slow.isfinite().all())
    if isinstance(make([torch.nn.Parameter(fast)]), torch.optim.SGD):
        assert same_bits(fast, slow)
    else:  # torch's root of a moment is off by a last place here and there
        assert int((fast != slow).sum()) < SIZE // 500
        torch.testing.assert_close(fast, slow)


def test_the_proximal_step_of_adam_rounds_every_operation_once() -> None:
    weight, protection = held(F32, F32)
    optimizer = torch.optim.Adam([weight], lr=0.01, eps=1e-6)
    optimizer.step()
    single = np.float32
    theta, fisher, anchor, moment = (
        tensor.detach().clone().numpy()
        for tensor in (
            weight,
            protection.fisher["w"],
            protection.anchor["w"],
            optimizer.state[weight]["exp_avg_sq"],
        )
    )
    scale = np.sqrt(moment / single(1 - 0.999)) + single(1e-6)
    with np.errstate(divide="ignore"):
        share = single(1) / (scale / (fisher * single(0.01 * 30)) + single(1))
    expected = theta - (theta - anchor) * share
    proximal_step(optimizer, {"w": weight}, protection, 30.0)
    assert same_bits(weight.detach(), torch.from_numpy(expected))


def test_other_types_and_strides_are_left_to_the_formulas() -> None:
    whole = torch.ones(4, 4)
    assert are_compiled([[whole], [whole.bfloat16()]])
    assert not are_compiled([[whole], [whole.double()]])
    assert not are_compiled([[whole], [whole.half()]])
    assert not are_compiled([[whole], [whole.T]])
    assert not are_compiled([[torch.ones(4, 4, device="meta")]])
