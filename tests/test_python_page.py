"""docs/python.md runs as it stands, and what it writes is what a merge takes."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fisher
import fisher.estimation
from fisher import Batch
from tests.commands.running import clmerge
from tests.pages import DOCS, section

PAGE = (DOCS / "python.md").read_text()


def blocks() -> list[str]:
    """The page's Python, in its order."""
    return re.findall(r"(?s)```python\n(.*?)```", PAGE)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) the example's loss."""
    return (model(**batch.inputs)[:, 0] - batch.labels).square()


def test_every_block_runs_one_after_another_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(blocks()) == 4
    names: dict[str, Any] = {}
    for block in blocks():
        exec(compile(block, "docs/python.md", "exec"), names)
    assert re.fullmatch(r"[\d.e+-]+ from 64 rows, ± [\d.e+-]+\n", capsys.readouterr().out)


def test_the_example_is_ten_lines_and_gives_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = section("python.md", "Any model, any loss").split("```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line]) <= 10
    names: dict[str, Any] = {}
    exec(compile(example, "docs/python.md", "exec"), names)
    model, x, y = names["model"].double(), names["x"].double(), names["y"].double()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        loss = (model(x[i : i + 1])[0, 0] - y[i]).square()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for total, gradient in zip(expected.values(), gradients, strict=True):
            total += gradient.square() / len(x)
    stored, said = fisher.load("a.fisher.safetensors")
    assert stored.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(stored[name].numpy(), values.numpy(), rtol=1e-4)
    assert (said["examples"], said["estimator"]) == (64, "empirical")


def test_the_source_and_target_example_is_what_transformers_makes_of_labels() -> None:
    example = section("python.md", "A source and a target").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(example, "docs/python.md", "exec"), names)
    model, source, target = names["model"].double().eval(), names["source"], names["target"]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(source)):
        model.zero_grad()
        mean = model(input_ids=source[n : n + 1], labels=target[n : n + 1]).loss
        (mean * target.shape[1]).backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad.square() / len(source)
    found = names["found"].diagonal
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=1e-9)


def test_a_module_of_ones_own_is_merged_by_the_sidecars_that_python_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, fishers = [], []
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        batch = Batch({"input": torch.randn(32, 4)}, torch.randn(32))
        found = fisher.estimate(model, [batch], loss=squared_error)
        save_file(model.state_dict(), f"{name}.safetensors")
        fisher.save(f"{name}.fisher.safetensors", found.diagonal, found.metadata())
        weights.append(model.state_dict())
        fishers.append(found.diagonal)
    line = ["fisher-merge", "a.safetensors", "b.safetensors"]
    line += ["--fisher", "a.fisher.safetensors", "--fisher", "b.fisher.safetensors"]
    result = clmerge(*line, "-o", "merged.safetensors")
    assert result.code == 0, result
    merged = load_file("merged.safetensors")
    assert merged.keys() == weights[0].keys()
    count = sum(tensor.numel() for tensor in fishers[0].values())
    scale = [sum(float(t.double().sum()) for t in one.values()) / count for one in fishers]
    for name in fishers[0]:
        floored = [
            one[name].double().clamp(min=1e-6 * float(one[name].double().mean())) / s
            for one, s in zip(fishers, scale, strict=True)
        ]
        expected = sum(f * w[name].double() for f, w in zip(floored, weights, strict=True))
        expected = expected / sum(floored)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-7)
    mean = (weights[0]["1.running_mean"] + weights[1]["1.running_mean"]) / 2
    torch.testing.assert_close(merged["1.running_mean"], mean)


def test_the_docstring_example_is_true() -> None:
    found = doctest.testmod(fisher.estimation)
    assert found.attempted >= 6
    assert found.failed == 0
