from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mergekit_cl.continual.average import WeightAverage
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.merge.ema import decay_of_half_life, ema_update
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS


class Small(nn.Module):
    """Linear layers that share a weight, batch statistics and a transposed parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.other = nn.Parameter(torch.randn(4, 3).t())
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.second(self.first(x)))
        return found


def walk(model: nn.Module, seed: int) -> None:
    """One step of a random walk, batch statistics included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        model(torch.randn(16, 6, generator=generator).to(next(model.parameters()).dtype))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def test_the_average_is_the_weighted_sum_of_all_weights_seen() -> None:
    torch.manual_seed(0)
    model = Small()
    average = WeightAverage(model, half_life=3)
    history = [model.norm.weight.detach().double().clone()]
    statistics = [model.norm.running_mean.double().clone()]
    for seed in range(10):
        walk(model, seed)
        average.update(model)
        history.append(model.norm.weight.detach().double().clone())
        statistics.append(model.norm.running_mean.double().clone())
    decay = 0.5 ** (1 / 3)
    weights = np.array([decay**10] + [decay ** (9 - i) * (1 - decay) for i in range(10)])
    assert weights.sum() == pytest.approx(1)
    for name, seen in (("norm.weight", history), ("norm.running_mean", statistics)):
        expected = sum(w * x for w, x in zip(weights, seen, strict=True))
        torch.testing.assert_close(average.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_after_a_half_life_half_of_the_old_weights_is_left() -> None:
    for amounts in ({"steps": 1}, {"steps": 4}):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        average = WeightAverage(model, half_life=100)
        nn.init.ones_(model.weight)
        for _ in range(100 // amounts["steps"]):
            average.update(model, **amounts)
        assert average.tensors["weight"].item() == pytest.approx(0.5, abs=1e-5)


def test_a_half_life_in_tokens_counts_tokens_however_they_are_cut() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averages = [WeightAverage(model, half_life=1000, unit="tokens") for _ in range(2)]
    nn.init.ones_(model.weight)
    for tokens in (100, 0, 650, 250):
        averages[0].update(model, tokens=tokens)
    averages[1].update(model, tokens=1000)
    for average in averages:
        assert average.tensors["weight"].item() == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(OptionError, match="tokens"):
        averages[0].update(model)


def test_each_update_has_the_bits_of_ema_merge() -> None:
    torch.manual_seed(0)
    model = nn.Linear(700, 500)
    average = WeightAverage(model, half_life=50)
    state = model.weight.detach().clone().reshape(-1)
    scratch = [torch.empty_like(state) for _ in range(SCRATCH_BUFFERS)]
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model)
        online = model.weight.detach().reshape(-1)
        merged = ema_update([state, online], scratch, decays=(decay_of_half_life(50),))
        state = merged.exact.clone()
    assert bits(average.tensors["weight"].reshape(-1)) == bits(state)


def test_warm_up_forgets_the_start_sooner() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, half_life=1e6, warmup=True)
    nn.init.ones_(model.weight)
    left = 1.0
    for update in range(20):
        average.update(model)
        left *= (1 + update) / (10 + update)
        assert 1 - average.tensors["weight"].item() == pytest.approx(left, abs=1e-6)


def test_a_bfloat16_model_is_averaged_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    average = WeightAverage(model, half_life=1000)
    start = model.weight.detach().float().clone()
    with torch.no_grad():
        model.weight.add_(1)
    for _ in range(1000):
        average.update(model)
    assert average.tensors["weight"].dtype == torch.float32
    way = (average.tensors["weight"] - start) / (model.weight.detach().float() - start)
    torch.testing.assert_close(way, torch.full_like(way, 0.5), rtol=0, atol=1e-4)


def test_integer_buffers_are_the_newest() -> None:
    model = Small()
    average = WeightAverage(model, half_life=100)
    for seed in range(3):
        walk(model, seed)
        average.update(model)
    assert average.tensors["norm.num_batches_tracked"].item() == 3


def test_tied_weights_are_averaged_once() -> None:
    model = Small()
    names = set(WeightAverage(model, half_life=1).tensors)
    assert "first.weight" in names
    assert "second.weight" not in names


def stored(average: WeightAverage) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(average.state_dict(), stream)
    stream.seek(0)
    found: dict[str, Any] = torch.load(stream, weights_only=True)
    return found


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_average_is_the_same_to_the_bit(stop: int) -> None:
    torch.manual_seed(0)
    model = Small(torch.bfloat16)
    whole = WeightAverage(model, half_life=5, warmup=True)
    resumed = copy.deepcopy(whole)
    for seed in range(9):
        walk(model, seed)
        whole.update(model)
        if seed == stop:
            state = stored(resumed)
            resumed = WeightAverage(model, half_life=5, warmup=True)
            resumed.load_state_dict(state)
        resumed.update(model)
    assert resumed.updates == whole.updates == 9
    for name, tensor in whole.tensors.items():
        assert bits(tensor) == bits(resumed.tensors[name])


def test_a_model_has_the_average_inside_and_its_own_bits_outside() -> None:
    torch.manual_seed(0)
    model = Small()
    average = WeightAverage(model, half_life=2)
    walk(model, 0)
    average.update(model)
    before = state_bytes(model)
    with average.applied(model):
        assert bits(model.other.detach()) == bits(average.tensors["other"])
        assert bits(model.second.weight.detach()) == bits(average.tensors["first.weight"])
    assert state_bytes(model) == before
    with pytest.raises(MismatchError), average.applied(model):
        average.update(nn.Linear(1, 1))
    assert state_bytes(model) == before
    average.copy_to(model)
    assert bits(model.norm.running_var) == bits(average.tensors["norm.running_var"])


def test_another_model_or_another_half_life_is_refused() -> None:
    average = WeightAverage(nn.Linear(2, 3), half_life=5)
    with pytest.raises(MismatchError, match="same tensors") as caught:
        average.update(nn.Linear(2, 4))
    assert "weight" in str(caught.value.detail)
    with pytest.raises(MismatchError, match="same tensors"):
        average.update(nn.Linear(2, 3, bias=False))
    other = WeightAverage(nn.Linear(2, 3), half_life=6)
    with pytest.raises(MismatchError, match="half-life"):
        other.load_state_dict(average.state_dict())
    with pytest.raises(OptionError, match="above 0"):
        WeightAverage(nn.Linear(2, 3), half_life=0)
