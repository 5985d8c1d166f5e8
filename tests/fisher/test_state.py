"""A run that stops and continues, and a model that is given back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.errors import StateError


@pytest.mark.parametrize("kind", ["tied llama", "mixtral"])
def test_a_run_continued_from_a_file_gives_the_same_bits(
    build: Any, rows: Any, split: Any, tmp_path: Path, kind: str
) -> None:
    model, batches = build(kind), split(rows(kind), 2)
    whole = Accumulator(model, seed=4)
    first = Accumulator(model, seed=4)
    for batch in batches:
        whole.add(batch)
    first.add(batches[0])
    tensors, numbers = first.state()
    save_file(tensors, tmp_path / "state.safetensors")
    text = json.dumps(numbers)

    second = Accumulator(build(kind), seed=4)
    second.restore(load_file(tmp_path / "state.safetensors"), json.loads(text))
    for batch in batches[1:]:
        second.add(batch)
    expected, found = whole.result(), second.result()
    assert found.standard_error == expected.standard_error
    assert (found.mean_nll, found.examples, found.tokens) == (
        expected.mean_nll,
        expected.examples,
        expected.tokens,
    )
    assert second.single_because == whole.single_because
    for name, tensor in expected.diagonal.items():
        assert torch.equal(found.diagonal[name], tensor), name


def test_a_state_of_another_run_is_refused(build: Any, rows: Any) -> None:
    saved = Accumulator(build("llama"), seed=4)
    saved.add(rows())
    tensors, numbers = saved.state()
    with pytest.raises(StateError, match="seed 4, not 5"):
        Accumulator(build("llama"), seed=5).restore(tensors, numbers)
    with pytest.raises(StateError, match="no square"):
        Accumulator(build("gpt2"), seed=4).restore(tensors, numbers)


class Restless(nn.Module):
    """Dropout, batch norm, a frozen part, and a buffer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.calls: Tensor

    def forward(self, x: Tensor, fail: Tensor | None = None) -> Tensor:
        self.calls += 1
        if fail is not None:
            raise RuntimeError("asked to fail")
        y: Tensor = self.last(self.drop(self.norm(self.first(x)).relu()))
        return y


def _snapshot(model: nn.Module) -> list[Any]:
    flags = [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    return [flags, grads, {name: t.clone() for name, t in model.state_dict().items()}]


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_given_back_as_it_was(failing: bool) -> None:
    model = Restless().train()
    model.drop.eval()
    model.first.weight.requires_grad_(False)
    model(torch.randn(6, 4)).sum().backward()
    kept = model.last.weight.grad
    assert kept is not None
    values = kept.clone()
    flags, grads, tensors = _snapshot(model)
    inputs = {"x": torch.randn(5, 4)}
    if failing:
        inputs["fail"] = torch.zeros(5)
    accumulator = Accumulator(model)
    batch = Batch(inputs, torch.arange(5) % 3, tuple("abcde"))
    if failing:
        with pytest.raises(RuntimeError, match="asked to fail"):
            accumulator.add(batch)
    else:
        accumulator.add(batch)
        assert bool((accumulator.result().diagonal["first.weight"] > 0).any())
    now_flags, now_grads, now_tensors = _snapshot(model)
    assert now_flags == flags
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(now_grads, grads, strict=True))
    assert torch.equal(values, kept)
    assert all(torch.equal(now_tensors[name], tensor) for name, tensor in tensors.items())


def test_dropout_is_off_so_a_second_call_gives_the_same_bits(build: Any, rows: Any) -> None:
    model = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    results = []
    for _ in range(2):
        accumulator = Accumulator(model)
        accumulator.add(rows("gpt2"))
        results.append(accumulator.result().diagonal)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_cache_is_off_during_the_run_only(build: Any, rows: Any) -> None:
    model, seen = build("llama"), []
    model.config.use_cache = True
    model.register_forward_hook(lambda m, _, out: seen.append(out.past_key_values))
    Accumulator(model).add(rows())
    assert seen == [None, None]
    assert model.config.use_cache is True


def test_autocast_around_the_call_does_not_change_the_compute_dtype(build: Any, rows: Any) -> None:
    model, batch = build("tied llama"), rows()
    plain, inside = Accumulator(model), Accumulator(model)
    plain.add(batch)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        inside.add(batch)
    for name, tensor in plain.result().diagonal.items():
        assert torch.equal(inside.result().diagonal[name], tensor)
