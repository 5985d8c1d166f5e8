"""The expected time of a streamed run, from one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fisher.layered.trial
import fisher.streamed
from fisher.batch import Batch
from fisher.errors import StackError
from fisher.layered.trial import Trial, try_layer
from tests.fisher.streaming import Holding, emptied, made

CPU = torch.device("cpu")


def batch_of_two() -> Batch:
    ids = torch.arange(12).reshape(2, 6) + 3
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return Batch({"input_ids": ids}, labels)


def test_loading_happens_once_and_batches_many_times() -> None:
    trial = Trial(layer=2, outside=3, load_layer=5, load_outside=7, share=0.25, kept=0)
    assert trial.expected(10) == 4 * (5 + 10 * 2) + 7 + 10 * 3


@pytest.mark.parametrize("kind", ["gemma3, alternating masks", "bloom", "one layer"])
def test_each_part_s_time_goes_where_it_belongs(
    kind: str, shaken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(fisher.layered.trial, "time", clock)
    whole = fisher.streamed.Streamed._squared

    def squared(self: Any, *arguments: Any) -> Any:
        now[0] += 100
        return whole(self, *arguments)

    monkeypatch.setattr(fisher.streamed.Streamed, "_squared", squared)
    model = made(kind, shaken)
    twin = emptied(model)
    before = list(twin.state_dict())
    weights = Holding(model)

    def slow(names: Sequence[str]) -> Mapping[str, Tensor]:
        now[0] += 10 if any(".layers." in n or ".h." in n for n in names) else 1
        return weights(names)

    trial = try_layer(twin, batch_of_two(), slow, CPU, seed=1)
    assert list(twin.state_dict()) == before
    layers = {n.split(".")[2] for n in before if ".layers." in n or ".h." in n}
    assert trial.share == pytest.approx(1 / len(layers))
    assert trial.load_layer == 2 * 10  # forward, and again on the way back
    assert trial.load_outside == len(weights.loads) - 2
    assert trial.layer == 100
    assert trial.outside == 2 * 100  # the head and the embeddings
    assert trial.kept > batch_of_two().labels.numel() * 16 * 4  # a layer keeps more than its input
    loaded = {name for names in weights.loads for name in names}
    assert loaded == {n for n in weights.values if ".layers." not in n and ".h." not in n} | {
        n for n in weights.values if ".layers.0." in n or ".h.0." in n
    }


def test_a_model_that_cannot_be_streamed_is_refused_as_by_a_run(shaken: object) -> None:
    model = made("albert", shaken)
    with pytest.raises(StackError, match="more than once"):
        try_layer(emptied(model), batch_of_two(), Holding(model), CPU)
