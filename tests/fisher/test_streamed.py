"""One layer at a time gives what the whole model gives, and holds one layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fisher.layered.boundaries import InFiles, InMemory
from fisher.layered.stack import find_stack
from tests.fisher.streaming import MORE, Streaming, compare, made, whole

KINDS = ("llama", "tied llama", "gpt2", "qwen3", "gemma", "mixtral", "llama classifier", "bert")


@pytest.mark.parametrize(
    ("kind", "estimator", "draws"),
    [
        *((kind, "mc", 1) for kind in (*KINDS, *list(MORE)[:4])),
        *((kind, "mc", 3) for kind in ("llama", "tied llama", "mixtral", "bert")),
        *((kind, "empirical", 1) for kind in ("llama", "gpt2", "qwen3 moe", "bert")),
    ],
)
def test_layer_by_layer_is_the_whole_model(
    kind: str,
    estimator: str,
    draws: int,
    build: Any,
    rows: Any,
    split: Any,
    shaken: Any,
    distance: Any,
    tmp_path: Path,
) -> None:
    model = made(kind, shaken) if kind in MORE else build(kind)
    batches = split(rows(kind), 2)
    options = {"estimator": estimator, "draws": draws, "seed": 3}
    found = Streaming(model, batches, tmp_path, **options)
    compare(found, found.run(), whole(model, batches, **options), distance)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama classifier"])
def test_every_class_of_a_classifier(
    kind: str, build: Any, rows: Any, split: Any, distance: Any, tmp_path: Path
) -> None:
    model, batches = build(kind), split(rows(kind), 3)
    found = Streaming(model, batches, tmp_path, estimator="exact")
    compare(found, found.run(), whole(model, batches, estimator="exact"), distance)


def test_rows_that_regroup_in_one_layer_alone_are_taken_singly_there(
    build: Any, rows: Any, split: Any, distance: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, batches = build("tied llama"), split(rows(), 2)
    whole_forward = type(model.model.layers[0].mlp).forward

    def forward(self: Any, x: Tensor) -> Tensor:
        torch.unique(x[..., 0].detach())
        y: Tensor = whole_forward(self, x)
        return y + (x * self.up_proj.weight.square().sum()) * 1e-3

    mlp = model.model.layers[1].mlp
    monkeypatch.setattr(mlp, "__class__", type("Regrouping", (type(mlp),), {"forward": forward}))
    expected = whole(model, batches)
    found = Streaming(model, batches, tmp_path)
    compare(found, found.run(), expected, distance)
    assert found.streamed.single_because is not None


def test_one_layer_is_loaded_at_a_time_and_handed_over_when_it_is_finished(
    build: Any, rows: Any, split: Any, tmp_path: Path
) -> None:
    model = build("llama", num_hidden_layers=4)
    found = Streaming(model, split(rows(), 2), tmp_path)
    found.run()
    stack = find_stack(model)
    for names in found.weights.loads:
        assert len({stack.index_of(name) for name in names}) <= 1
    layers = [f"model.layers.{index}" for index in (3, 2, 1, 0)]
    assert found.parts == ["after the layers", *layers, "before the layers"]
    assert not list(tmp_path.iterdir())
    assert all(p.is_meta for p in found.streamed._model.parameters())


def kept(place: Path, files: bool) -> Any:
    return InFiles(place / "activations") if files else InMemory()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("files", [False, True], ids=["in memory", "in files"])
@pytest.mark.parametrize("kind", ["tied llama", "gpt2", "bert"])
def test_it_continues_wherever_it_was_stopped(
    kind: str,
    files: bool,
    build: Any,
    rows: Any,
    split: Any,
    distance: Any,
    tmp_path: Path,
) -> None:
    model, batches = build(kind), split(rows(kind), 2)
    expected = whole(model, batches)
    total = Streaming(model, batches, tmp_path / "all").streamed.steps
    for limit in range(1, total, 9):
        place = tmp_path / str(limit)
        first = Streaming(model, batches, place / "gradients", activations=kept(place, files))

        def stop(rows: int, first: Streaming = first, limit: int = limit) -> None:
            first.advanced.append(rows)
            if sum(first.advanced) > limit:
                raise Stopped

        object.__setattr__(first.ways, "advance", stop)
        with pytest.raises(Stopped):
            first.run()
        then = Streaming(
            model,
            batches,
            place / "gradients",
            activations=kept(place, files),
            recorded=first.records,
        )
        finished = [e for e in first.records if e["done"] != "forward"]
        result = then.run()
        assert len(then.parts) + len(finished) == len(find_stack(model)) + 2
        # What was finished before is not computed again.
        then.diagonal = {**first.diagonal, **then.diagonal}
        compare(then, result, expected, distance)


def test_what_is_left_out_has_no_diagonal(
    build: Any, rows: Any, split: Any, distance: Any, tmp_path: Path
) -> None:
    model, batches = build("tied llama"), split(rows(), 2)

    def include(name: str) -> bool:
        return "layers.1" in name

    expected = whole(model, batches, include=include)
    found = Streaming(model, batches, tmp_path, include=include)
    result = found.run()
    compare(found, result, expected, distance)
    assert set(result.missing.values()) == {"excluded"}
