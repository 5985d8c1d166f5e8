"""What a forward pass keeps, against what autograd is documented to save."""

from __future__ import annotations

import torch
from torch import nn

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.keeping import kept_for_backward


def test_every_storage_counts_once_and_weights_do_not() -> None:
    x = torch.randn(10, requires_grad=True)
    weight = torch.randn(10, requires_grad=True)
    with kept_for_backward() as keeping:
        keeping.leave_out([weight])
        y = (x * weight).exp()  # keeps x, weight and the result of exp
        z = y * y.view(2, 5).view(10)  # keeps that result twice more
        assert keeping.peak == 2 * 10 * 4
        z.sum().backward()
    del y, z
    with kept_for_backward() as keeping:
        for _ in range(3):  # what is let go before the next comes is no sum
            (x * x).sum().backward()
    assert keeping.peak == 10 * 4


def test_counting_changes_no_estimate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11))
    ids = torch.randint(0, 11, (3, 5))
    batch = Batch({"input": ids}, ids)
    plain, counted = Accumulator(model), Accumulator(model)
    plain.add(batch)
    with kept_for_backward() as keeping:
        counted.add(batch)
    assert keeping.peak > 0
    assert counted.single_because == plain.single_because
    found = counted.result().diagonal
    assert all(torch.equal(found[n], t) for n, t in plain.result().diagonal.items())
