"""Tiny real models and rows of text for `clmerge fisher`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.commands.running import clmerge
from tests.tiny_models import TEXTS, tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_mixtral

SIDECAR = "clmerge/fisher.safetensors"


def write_models(place: Path) -> None:
    """Models a, b, tied (Llama), gpt, moe, c (a classifier); rows.jsonl and labelled.csv."""
    tiny_llama(place / "a", seed=1)
    tiny_llama(place / "b", seed=2)
    tiny_llama(place / "tied", tied=True, seed=3)
    tiny_gpt2(place / "gpt", seed=4)
    tiny_mixtral(place / "moe", seed=5)
    tiny_bert_classifier(place / "c", seed=6)
    write_rows(place / "rows.jsonl", ({"text": text} for text in TEXTS))
    lines = [f'"{text}",{number % 3}' for number, text in enumerate(TEXTS)]
    (place / "labelled.csv").write_text("\n".join(["text,label", *lines, ""]))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run(*line: str | Path) -> Any:
    """Run a command that must succeed; gives its JSON document."""
    result = clmerge(*line, "--json")
    assert result.code == 0, result
    return result.document


def said_by(path: Path) -> dict[str, Any]:
    """The description in a sidecar's metadata."""
    with safe_open(path, "pt") as stored:
        found: dict[str, Any] = json.loads(stored.metadata()["clmerge.fisher"])
    return found


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative L2 distance of any tensor.

    A tensor whose gradient is 0 by symmetry (a key's bias) holds the rounding of float32 alone: it
    is compared with the largest tensor instead of with itself.
    """
    assert found.keys() == expected.keys()
    norms = {name: float(tensor.norm()) for name, tensor in expected.items()}
    least = 1e-12 * max(norms.values())
    return max(
        float((found[name].double() - expected[name]).norm())
        / (norms[name] if norms[name] > least else max(norms.values()))
        for name in expected
    )


def slow_fisher(model: Path, kind: type, *, labels: list[int] | None) -> dict[str, torch.Tensor]:
    """The definition, row by row in float64: `empirical` for TEXTS, or `exact` with labels given.

    mean over rows of (d log p / d theta)^2, summed over classes by their probability where exact.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    net = kind.from_pretrained(model).double().eval()  # type: ignore[attr-defined]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        log_p = net(input_ids=ids).logits.log_softmax(-1)
        if labels is None:
            terms = [(1.0, log_p[0, :-1].gather(1, ids[0, 1:, None]).sum())]
        else:
            terms = [(lp.exp().item(), lp) for lp in log_p[0]]
        for weight, term in terms:
            gradients = torch.autograd.grad(term, list(net.parameters()), retain_graph=True)
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                sums[names[id(parameter)]] += weight * gradient.square() / len(TEXTS)
    return sums


def stored(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a sidecar."""
    return load_file(path)
