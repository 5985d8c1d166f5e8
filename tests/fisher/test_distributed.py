"""Sums of several processes are those of one, also where a model lies in FSDP2's shards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fisher.accumulator import Accumulator, Estimate
from fisher.batch import Batch
from fisher.distributed import combined, gathered, reduce_sums
from fisher.errors import EstimatorError, StateError
from tests.processes import together


def _replicas(rank: int, model: nn.Module, deals: list[list[list[Batch]]]) -> list[Estimate]:
    found = []
    for shares in deals:
        accumulator = Accumulator(model, seed=3)
        for batch in shares[rank]:
            accumulator.add(batch)
        reduce_sums(accumulator)
        found.append(accumulator.result())
    return found


def _shards(rank: int, model: nn.Module, shares: list[list[Batch]], place: Path) -> Any:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    accumulator = Accumulator(model, seed=3)
    for batch in shares[rank]:
        accumulator.add(batch)
    reduce_sums(accumulator)
    estimate = accumulator.result()
    weights = dict(model.named_parameters())
    for name, values in estimate.diagonal.items():
        assert values.placements == weights[name].placements, name
        assert values.to_local().shape == weights[name].to_local().shape, name
    checkpoint.save(estimate.diagonal, checkpoint_id=place / "saved")
    assert all(type(parameter.grad) is type(None) for parameter in model.parameters())
    return gathered(estimate)


def _alone(model: nn.Module, batches: list[Batch]) -> Estimate:
    accumulator = Accumulator(model, seed=3)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.result()


def _same(found: Estimate, expected: Estimate, distance: Any) -> None:
    assert distance(found.diagonal, expected.diagonal) < 1e-5
    assert (found.examples, found.tokens) == (expected.examples, expected.tokens)
    assert found.mean_nll == pytest.approx(expected.mean_nll, rel=1e-6)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-5, abs=1e-12)
    assert (found.missing, found.tied) == (expected.missing, expected.tied)


@pytest.mark.slow
def test_two_processes_of_which_one_may_have_no_rows_give_the_sums_of_one(
    build: Any, rows: Any, split: Any, distance: Any, tmp_path: Path
) -> None:
    model, batches = build("tied llama"), split(rows(), 2)
    expected = _alone(copy.deepcopy(model), [rows()])
    deals = [[batches[:1], batches[1:]], [[], batches]]
    for each in together(2, _replicas, tmp_path, model, deals):
        for found in each:
            _same(found, expected, distance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied llama", pytest.param("mixtral", marks=pytest.mark.long)])
def test_a_model_in_shards_ends_with_its_fisher_in_the_same_shards(
    build: Any, rows: Any, split: Any, distance: Any, tmp_path: Path, kind: str
) -> None:
    import torch.distributed.checkpoint as checkpoint

    model, batches = build(kind), split(rows(lengths=(5, 11, 2, 8, 13, 7)), 3)
    expected = _alone(copy.deepcopy(model), batches)
    shares = [[batch] for batch in batches]
    for found in together(2, _shards, tmp_path, model, shares, tmp_path):
        _same(found, expected, distance)
    saved = {name: torch.zeros_like(values) for name, values in expected.diagonal.items()}
    with pytest.warns(UserWarning, match="single process"):
        checkpoint.load(saved, checkpoint_id=tmp_path / "saved", no_dist=True)
    assert distance(saved, expected.diagonal) < 1e-5


class Sorted(nn.Module):
    """A model whose rows cannot be told apart by their place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.first(x)
        logits: torch.Tensor = self.second(hidden.sort(0).values)
        return logits


def _sorted(rank: int, batch: Batch) -> str:
    from torch.distributed.fsdp import fully_shard

    model = Sorted()
    fully_shard(model)
    with pytest.raises(EstimatorError) as caught:
        Accumulator(model).add(batch)
    return str(caught.value)


def test_a_sharded_model_whose_rows_cannot_go_together_is_refused(tmp_path: Path) -> None:
    batch = Batch({"x": torch.randn(2, 3)}, torch.tensor([0, 1]), ("one", "two"))
    (said,) = together(1, _sorted, tmp_path, batch)
    assert "cannot be taken one at a time" in said
    assert "regroups rows by their content" in said


def test_counts_add_flags_join_and_settings_must_agree() -> None:
    one = {"seed": 1, "examples": 2, "nll": 0.1, "examined": False, "why": None}
    two = {"seed": 1, "examples": 3, "nll": 0.2, "examined": True, "why": "mixes"}
    assert combined([one, two], fixed={"seed"}) == {
        "seed": 1,
        "examples": 5,
        "nll": pytest.approx(0.3),
        "examined": True,
        "why": "mixes",
    }
    with pytest.raises(StateError, match="differ in seed"):
        combined([one, {**two, "seed": 2}], fixed={"seed"})
