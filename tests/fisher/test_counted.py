"""Every name of a model's state is counted, tied to one that is, or missing with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.counted import counted
from fisher.reference import reference


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.quantised = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def test_each_name_of_the_state_is_accounted_for_once() -> None:
    model = Zoo()
    model.a.requires_grad_(False)  # as loaders leave it: no reason to skip
    found = counted(model, include=lambda name: name != "a.bias", frozen=["b.weight"])
    assert found.missing == {
        "norm.running_mean": "buffer",
        "norm.running_var": "buffer",
        "norm.num_batches_tracked": "buffer",
        "quantised": "unsupported",
        "b.weight": "frozen",
        "a.bias": "excluded",
    }
    assert list(found.parameters) == ["a.weight", "b.bias", "norm.weight", "norm.bias"]
    names = {*found.parameters, *found.tied, *found.missing}
    assert names == set(model.state_dict())


def test_tied_names_are_counted_once_under_the_first(build: Any, rows: Any) -> None:
    accumulator = Accumulator(build("tied llama"))
    accumulator.add(rows())
    result = accumulator.result()
    assert result.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in result.diagonal
    assert result.missing == {}


def test_a_tied_parameter_counts_if_any_of_its_names_does(build: Any) -> None:
    found = counted(build("tied llama"), include=lambda name: name == "lm_head.weight")
    assert list(found.parameters) == ["model.embed_tokens.weight"]


class TwoObjects(nn.Module):
    """Two parameter objects over the same memory, as some loaders tie them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 4)
        self.head = nn.Linear(4, 12, bias=False)
        self.head.weight = nn.Parameter(self.embed.weight.data)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.embed(ids)))
        return logits


def test_two_objects_over_one_memory_are_one_parameter(rows: Any, distance: Any) -> None:
    from fisher.batch import Batch

    ids = torch.randint(12, (3, 5))
    batch = Batch({"ids": ids}, torch.randint(12, (3, 5)), ("a", "b", "c"))
    model = TwoObjects()
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(batch)
    same = TwoObjects()
    same.embed.weight = nn.Parameter(model.embed.weight.detach().clone())
    same.head.weight = same.embed.weight
    expected = reference(same, [batch], estimator="empirical")
    assert accumulator.result().tied == {"head.weight": "embed.weight"}
    assert distance(accumulator.result().diagonal, expected) < 1e-5


def test_what_is_not_counted_gets_no_gradient_and_changes_nothing_else(
    build: Any, rows: Any
) -> None:
    model = build("gpt2")
    whole, part = Accumulator(model), Accumulator(model, include=lambda name: "mlp" in name)
    for accumulator in (whole, part):
        accumulator.add(rows("gpt2"))
    full, some = whole.result(), part.result()
    assert set(some.diagonal) == {name for name in full.diagonal if "mlp" in name}
    assert set(some.missing) == set(full.diagonal) - set(some.diagonal)
    for name, tensor in some.diagonal.items():
        torch.testing.assert_close(tensor, full.diagonal[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("ending", ["weight", "bias"])
def test_half_of_an_affine_layer_can_count_alone(build: Any, rows: Any, ending: str) -> None:
    model = build("gpt2")
    whole, part = Accumulator(model), Accumulator(model, include=lambda n: n.endswith(ending))
    for accumulator in (whole, part):
        accumulator.add(rows("gpt2"))
    assert part.single_because is None
    full, some = whole.result().diagonal, part.result().diagonal
    assert set(some) == {name for name in full if name.endswith(ending)}
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, full[name], rtol=1e-4, atol=1e-6 * float(tensor.max()))
