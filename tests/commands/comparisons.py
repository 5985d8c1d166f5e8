"""What `clmerge diff` and `clmerge check` print, taken apart; the same numbers in float64 numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.commands.running import clmerge

Numbers = dict[str, float]


def diff(*line: str | Path) -> Any:
    """The document of a comparison that must succeed."""
    result = clmerge("diff", *line, "--json")
    assert result.code == 0, result
    return result.document


def check(*line: str | Path, code: int = 0) -> Any:
    """The document of a check that must end with `code`."""
    result = clmerge("check", *line, "--json")
    assert result.code == code, result
    return result.document


def rows(document: Any, kind: str = "tensors") -> dict[tuple[str, str], dict[str, Any]]:
    """{(name, parent): metrics} of its tensors or layers."""
    key = {"tensors": "name", "layers": "layer"}[kind]
    return {(row[key], row["parent"]): row for row in document[kind]}


def wide(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint as flat float64."""
    stored = load_file(folder / "model.safetensors")
    return {name: t.to(torch.float64).reshape(-1).numpy() for name, t in stored.items()}


def distances(m: np.ndarray, p: np.ndarray, fisher: np.ndarray | None = None) -> Numbers:
    """The definitions of docs/mathematics.md, on values that are exact in float64."""
    d = m - p
    found = {
        "rel_l2": float(np.linalg.norm(d) / np.linalg.norm(p)),
        "cosine": float(m @ p / (np.linalg.norm(m) * np.linalg.norm(p))),
        "max_abs": float(np.abs(d).max()),
        "changed": float((m != p).mean()),
    }
    if fisher is not None:
        found["predicted_kl"] = float((fisher * d * d).sum() / 2)
    return found


def joined(parts: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Several tensors as one vector."""
    return np.concatenate([parts[name] for name in names])


def close(found: Mapping[str, Any], expected: Numbers) -> None:
    for metric, value in expected.items():
        assert np.isclose(found[metric], value, rtol=1e-9, atol=1e-15), (metric, found[metric])
