"""One layer at a time gives what the whole model gives, and holds one layer at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator, Estimate
from fisher.batch import Batch
from fisher.errors import BatchError, EstimatorError, StackError
from fisher.layered.boundaries import InFiles, InMemory
from fisher.layered.stack import find_stack
from fisher.streamed import Streamed, Ways

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3, alternating masks": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **SIZES,
            "head_dim": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3 moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **SIZES,
            "head_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "experts_implementation": "eager",
        },
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    ),
    "one layer": ("LlamaConfig", "LlamaForCausalLM", {**SIZES, "num_hidden_layers": 1}),
    "albert": (
        "AlbertConfig",
        "AlbertForSequenceClassification",
        {
            "vocab_size": 61,
            "hidden_size": 16,
            "embedding_size": 8,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 61,
            "d_model": 16,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 4,
        },
    ),
}


class Holding:
    """Gives weights, and keeps count of how many elements are held at once."""

    def __init__(self, model: nn.Module) -> None:
        self.values = dict(model.named_parameters())
        self.loads: list[tuple[str, ...]] = []

    def __call__(self, names: Sequence[str]) -> dict[str, Tensor]:
        self.loads.append(tuple(names))
        return {name: self.values[name].detach().clone() for name in names}


class Streaming:
    """A model taken layer by layer, with what it handed over."""

    def __init__(self, model: nn.Module, batches: list[Batch], folder: Path, **options: Any):
        self.weights = Holding(model)
        self.diagonal: dict[str, Tensor] = {}
        self.parts: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.advanced: list[int] = []
        self.activations = options.pop("activations", None) or InMemory()
        self.ways = Ways(
            self.weights,
            self.finish,
            self.activations,
            InFiles(folder),
            self.records.append,
            options.pop("recorded", ()),
            self.advanced.append,
        )
        self.streamed = Streamed(
            emptied(model), lambda: iter(batches), self.ways, device=torch.device("cpu"), **options
        )

    def finish(self, part: str, diagonal: Mapping[str, Tensor]) -> None:
        assert not self.diagonal.keys() & diagonal.keys()
        self.parts.append(part)
        self.diagonal.update({name: values.clone() for name, values in diagonal.items()})

    def run(self) -> Estimate:
        return self.streamed.run()


def emptied(model: nn.Module) -> nn.Module:
    """A copy with its parameters on the meta device, ties kept."""
    twin = copy.deepcopy(model)
    made: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(parameter.detach().to("meta"))
                module._parameters[name] = made.setdefault(id(parameter), empty)
    return twin


def made(kind: str, shaken: Any) -> nn.Module:
    import transformers

    config, architecture, sizes = MORE[kind]
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**sizes))
    shaken(model)
    assert isinstance(model, nn.Module)
    return model


def whole(model: nn.Module, batches: list[Batch], **options: Any) -> Estimate:
    accumulator = Accumulator(model, **options)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.result()


def compare(found: Streaming, result: Estimate, expected: Estimate, distance: Any) -> None:
    assert distance(found.diagonal, expected.diagonal) < 1e-5
    assert sum(found.advanced) == found.streamed.steps
    for key in ("examples", "tokens", "missing", "tied", "estimator", "draws", "seed"):
        assert getattr(result, key) == getattr(expected, key)
    assert result.mean_nll == pytest.approx(expected.mean_nll, rel=1e-6)
    assert result.trace_standard_error == pytest.approx(expected.trace_standard_error, rel=1e-5)
    assert result.standard_error.keys() == expected.standard_error.keys()
    largest = max(float(error or 0) for error in expected.standard_error.values())
    for name, error in expected.standard_error.items():
        assert result.standard_error[name] == pytest.approx(error, rel=1e-4, abs=1e-9 * largest)


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


@pytest.mark.parametrize(
    ("kind", "says"),
    [("albert", "more than once"), ("t5", "has 2 stacks of layers: encoder.block, decoder.block")],
)
def test_what_is_no_single_stack_is_refused_by_name(
    kind: str, says: str, rows: Any, shaken: Any, tmp_path: Path
) -> None:
    model = made(kind, shaken)
    with pytest.raises(StackError, match=says):
        Streaming(model, [rows("classifier")], tmp_path).run()


class Blocks(nn.Module):
    """Embedding, layers, head; the kinds below do with them what cannot be streamed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(61, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 61)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


class Changes(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        logits: Tensor = self.head(x)
        return logits


class Skips(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = start = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x + start)
        return logits


class Collects(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, seen = self.embed(input_ids), []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        logits: Tensor = self.head(torch.stack(seen).mean(0))
        return logits


class LeavesOut(Blocks):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers[0](self.embed(input_ids)))
        return logits


class Shares(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1].weight = self.layers[0].weight


class NoStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Changes, "changes hidden states before layer 1"),
        (Skips, "embed.weight is used both before and after"),
        (Collects, "uses more than the last one's result"),
        (LeavesOut, "does not call all of its layers"),
        (Shares, "layers share weights: layers.0.weight and layers.1.weight"),
        (NoStack, "has no stack of layers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_goes_another_way_is_refused_not_computed_wrongly(
    kind: Callable[[], nn.Module], says: str, rows: Any, tmp_path: Path
) -> None:
    with pytest.raises(StackError, match=says):
        Streaming(kind(), [rows()], tmp_path).run()


def test_plain_layers_need_no_library(rows: Any, split: Any, distance: Any, tmp_path: Path) -> None:
    model, batches = Blocks(), split(rows(), 2)
    found = Streaming(model, batches, tmp_path)
    compare(found, found.run(), whole(model, batches), distance)


def test_what_the_accumulator_refuses_is_refused_here_too(
    build: Any, rows: Any, tmp_path: Path
) -> None:
    model = build("llama")
    for options in ({"estimator": "best"}, {"draws": 0}, {"include": lambda name: False}):
        with pytest.raises(EstimatorError):
            Streaming(model, [rows()], tmp_path, **options)
    with pytest.raises(EstimatorError, match="exact sums over the classes"):
        Streaming(model, [rows()], tmp_path, estimator="exact").run()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(BatchError, match="not finite"):
        Streaming(model, [rows()], tmp_path).run()
