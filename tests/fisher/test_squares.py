"""The fast path equals one backward pass per example, on real architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.labels import mc
from fisher.reference import reference

TOGETHER = (
    "llama",
    "tied llama",
    "llama classifier",
    "gpt2",
    "qwen3",
    "gemma",
    "bert",
    "distilbert",
    "mixtral",
)


def drawn(model: torch.nn.Module, batch: Batch, draws: int = 1) -> list[torch.Tensor]:
    """Labels to fix, so that two precisions cannot draw different ones."""
    model.eval()
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    return mc(logits, batch.labels, batch.row_ids, seed=0, draws=draws)


@pytest.mark.parametrize("kind", TOGETHER)
def test_every_family_equals_the_float64_loop(
    build: Any, rows: Any, distance: Any, kind: str
) -> None:
    model, batch = build(kind), rows(kind)
    labels = drawn(model, batch)
    accumulator = Accumulator(model)
    accumulator.add(batch, labels=labels)
    expected = reference(model, [batch], labels=[labels])
    assert distance(accumulator.result().diagonal, expected) < 1e-5
    assert accumulator.single_because is None


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_in_float64_the_fast_path_agrees_to_rounding(
    build: Any, rows: Any, distance: Any, kind: str
) -> None:
    model, batch = build(kind).double(), rows(kind)
    labels = drawn(model, batch)
    accumulator = Accumulator(model)
    accumulator.add(batch, labels=labels)
    found = accumulator.result().diagonal
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    assert distance(found, reference(model, [batch], labels=[labels])) < 1e-11


@pytest.mark.parametrize("kind", ["tied llama", "gpt2", "bert"])
def test_in_bfloat16_squares_are_float32_and_near_the_loop(
    build: Any, rows: Any, distance: Any, kind: str
) -> None:
    model, batch = build(kind).bfloat16(), rows(kind)
    labels = drawn(model, batch)
    accumulator = Accumulator(model)
    accumulator.add(batch, labels=labels)
    found = accumulator.result().diagonal
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    own = {n: t for n, t in found.items() if not n.endswith(("key.bias", "c_attn.bias"))}
    exact = reference(model, [batch], labels=[labels])
    assert distance(own, {name: exact[name] for name in own}) < 5e-2


@pytest.mark.parametrize("kind", ["tied llama", "gpt2", "bert", "mixtral"])
def test_batch_size_order_and_padding_do_not_matter(
    build: Any, rows: Any, split: Any, distance: Any, kind: str
) -> None:
    model, batch = build(kind), rows(kind)
    labels = drawn(model, batch)[0]

    def estimate(batch: Batch, labels: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
        accumulator = Accumulator(model)
        for part, fixed in zip(split(batch, size), labels.split(size), strict=True):
            accumulator.add(part, labels=[fixed])
        return accumulator.result().diagonal

    together = estimate(batch, labels, 5)
    for size in (1, 2, 3):
        assert distance(estimate(batch, labels, size), together) < 1e-5
    backwards = Batch(
        {name: tensor.flip(0) for name, tensor in batch.inputs.items()},
        batch.labels.flip(0),
        batch.row_ids[::-1],
    )
    assert distance(estimate(backwards, labels.flip(0), 2), together) < 1e-5
    padding = (0, 21 - max(map(int, batch.inputs["attention_mask"].sum(1))))
    wider = torch.nn.functional.pad(labels, padding, value=-100) if labels.dim() > 1 else labels
    assert distance(estimate(rows(kind, width=21), wider, 5), together) < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["tied llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(
    build: Any, rows: Any, kind: str, reentrant: bool
) -> None:
    model, batch = build(kind), rows(kind)
    labels = drawn(model, batch)

    def estimate() -> tuple[Accumulator, dict[str, torch.Tensor]]:
        accumulator = Accumulator(model)
        accumulator.add(batch, labels=labels)
        return accumulator, accumulator.result().diagonal

    _, plain = estimate()
    repeated = []
    for layer in model.model.layers if kind == "tied llama" else model.transformer.h:

        def again(
            *args: Any, forward: Callable[..., Any] = layer.forward, **kwargs: Any
        ) -> torch.Tensor:
            def run(*values: Any) -> Any:
                repeated.append(1)
                return forward(*values, **kwargs)

            return checkpoint(run, *args, use_reentrant=reentrant)

        layer.forward = again
    accumulator, saved = estimate()
    assert accumulator.single_because is None
    assert len(repeated) == 2 * 2 * 2  # the probe and the batch, two layers, twice each
    assert all(torch.equal(saved[name], plain[name]) for name in plain)


@pytest.mark.parametrize("kind", ["bert", "llama classifier", "distilbert"])
def test_exact_sums_over_the_classes(build: Any, rows: Any, distance: Any, kind: str) -> None:
    model, batch = build(kind), rows(kind)
    accumulator = Accumulator(model, estimator="exact")
    accumulator.add(batch)
    expected = reference(model, [batch], estimator="exact")
    assert distance(accumulator.result().diagonal, expected) < 1e-5


@pytest.mark.parametrize("kind", ["tied llama", "mixtral"])
def test_several_draws_are_averaged(build: Any, rows: Any, distance: Any, kind: str) -> None:
    model, batch = build(kind), rows(kind)
    labels = drawn(model, batch, draws=3)
    accumulator = Accumulator(model, draws=3)
    accumulator.add(batch, labels=labels)
    expected = reference(model, [batch], draws=3, labels=[labels])
    assert distance(accumulator.result().diagonal, expected) < 1e-5
    assert not all(map(torch.equal, labels[1:], labels))


def test_a_prompt_without_a_loss_conditions_but_is_not_scored(
    build: Any, rows: Any, distance: Any
) -> None:
    model, batch = build("tied llama"), rows(lengths=(7, 12, 9), prompt=4)
    assert bool((batch.labels[:, :4] == -100).all())
    accumulator = Accumulator(model, estimator="empirical")
    accumulator.add(batch)
    expected = reference(model, [batch], estimator="empirical")
    assert distance(accumulator.result().diagonal, expected) < 1e-5
    assert accumulator.tokens == (7 - 5) + (12 - 5) + (9 - 5)


def test_a_batch_costs_one_forward_pass(build: Any, rows: Any) -> None:
    model, calls = build("tied llama"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    accumulator = Accumulator(model, draws=2)
    for _ in range(3):
        accumulator.add(rows())
    assert len(calls) == 3 + 1  # and the probe, once


def test_no_drawn_label_flips_between_batch_sizes_in_float32(
    build: Any, rows: Any, split: Any
) -> None:
    flips = total = 0
    for kind in ("llama", "gpt2", "qwen3"):
        model = build(kind).eval()
        batch = rows(kind, lengths=tuple(range(2, 42)))
        whole = drawn(model, batch)[0]
        for size in (1, 7):
            parts = [drawn(model, part)[0] for part in split(batch, size)]
            flips += int((torch.cat(parts) != whole).sum())
            total += batch.tokens
    assert total > 4000
    assert flips == 0
