"""Convolutions of every geometry have their examples squared in one backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.reference import reference

CLASSES = 3
LAYERS: dict[str, tuple[int, Any]] = {
    "plain": (2, lambda: nn.Conv2d(4, 6, 3)),
    "no bias": (2, lambda: nn.Conv2d(4, 6, 3, bias=False)),
    "strided and padded": (2, lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1))),
    "dilated": (2, lambda: nn.Conv2d(4, 6, 2, dilation=(3, 2))),
    "patches": (2, lambda: nn.Conv2d(4, 6, 4, stride=4)),
    "one tap": (2, lambda: nn.Conv2d(4, 6, 1, stride=2)),
    "groups": (2, lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same")),
    "depthwise": (2, lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1)),
    "same, even kernel": (1, lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=3)),
    "circular": (1, lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular")),
    "causal": (1, lambda: nn.Conv1d(4, 4, 4, groups=4, padding=3)),
    "three axes": (3, lambda: nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 2, 1), dilation=2)),
}


class Convolved(nn.Module):
    """A layer, norms of channels, a head."""

    def __init__(self, layer: nn.Module, axes: int) -> None:
        super().__init__()
        self.before = [nn.Conv1d, nn.Conv2d, nn.Conv3d][axes - 1](2, 4, 1)
        self.norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][axes - 1](4)
        self.groups = nn.GroupNorm(2, 4)
        self.layer = layer
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.groups(self.norm(self.before(x))))
        logits: Tensor = self.head(torch.tanh(self.layer(x)).flatten(2).mean(2))
        return logits


def batch(axes: int, size: int) -> Batch:
    random = torch.Generator().manual_seed(axes)
    x = torch.randn(size, 2, *(9, 8, 10)[:axes], generator=random)
    return Batch({"x": x}, torch.arange(size) % CLASSES, tuple(map(str, range(size))))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_equals_the_float64_loop(name: str, shaken: Any, distance: Any) -> None:
    axes, layer = LAYERS[name]
    model = Convolved(layer(), axes)
    model(batch(axes, 2).inputs["x"])  # gives the head its size, the norm its statistics
    shaken(model)
    for size in (1, 5):
        rows = batch(axes, size)
        accumulator = Accumulator(model, estimator="exact")
        accumulator.add(rows)
        assert accumulator.single_because is None
        expected = reference(model, [rows], estimator="exact")
        assert distance(accumulator.result().diagonal, expected) < 1e-5


def test_examples_that_do_not_fit_the_scratch_go_in_several_runs(
    shaken: Any, distance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes, layer = LAYERS["groups"]
    model, rows = Convolved(layer(), axes), batch(axes, 5)
    model(rows.inputs["x"])
    shaken(model)
    monkeypatch.setattr("fisher.squares.convolution._CPU_SCRATCH", 2 * 4 * 9 * 72)
    accumulator = Accumulator(model, estimator="exact")
    accumulator.add(rows)
    expected = reference(model, [rows], estimator="exact")
    assert distance(accumulator.result().diagonal, expected) < 1e-5
