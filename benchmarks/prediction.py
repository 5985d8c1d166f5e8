"""How good is `predicted_kl`: predicted beside measured for merges of real models.

    python benchmarks/prediction.py --work DIR [--demo demo] [--plot docs/prediction.svg]

Three classifiers (MiniLM-L6 tuned on films, tweets, editorials) and, where `make demo` has
made them, the two language models of the quickstart. Each is a parent of merges with
each of the others that differ in partner, in the part of the layers that is merged, in method
(average, Fisher weighted) and in the Fisher's estimator, all at ONE distance from the parent: a
merge's weights are chosen so. What ranks them then is the direction alone.

Measured: KL(parent || merge) and the rise of the loss, on held-out rows. Predicted, all from rows
of the parent's training: see METHODS in prediction_tables.py. DIR holds models, sidecars and
results, and what is there is not made again. About fifteen minutes on two cores; a plot needs
matplotlib (pip install matplotlib).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from prediction_models import Probe, Rows, Weights, divergence, kind, layer, loss
from prediction_tables import print_tables
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from examples.once import once
from examples.rows import read_rows, spread

DISTANCE = 0.35
"""From the parent to each merge, as a share of the way to the nearest partner."""
GROUPS = 6
DOMAINS = ("films", "tweets", "editorials")
SPECIALISTS = ("king-james", "german")
SUBSETS: dict[str, Callable[[str, int], bool]] = {
    "all": lambda name, layers: True,
    "lower half": lambda name, layers: _depth(name) < layers / 2,
    "upper half": lambda name, layers: _depth(name) >= layers / 2,
    "feed-forward": lambda name, layers: kind(name) == "feed-forward",
}
WAYS = [(subset, how) for subset in SUBSETS for how in ("linear", "unbiased")]
WAYS += [("all", "empirical"), ("upper half", "empirical")]


def _depth(name: str) -> float:
    where = layer(name)
    return float(where[6:]) if where.startswith("layer") else (-1 if where == "embeddings" else 1e9)


class Family:
    """Models from one base: folders, rows, the command line's choices for them."""

    def __init__(self, folder: Path, members: tuple[str, ...], options: dict[str, Any]) -> None:
        self.folder, self.members = folder, members
        self.longest: int = options["longest"]
        self.unbiased: str = options["unbiased"]
        self.samples: int = options["samples"]
        self.walked: int = options["walked"]
        self.held_out: int = options["held_out"]


def classifiers(work: Path, steps: int) -> Family:
    """Fetch, tune and describe the classifiers."""
    from examples.fetch import fetch
    from examples.sentiment.snippets import labelled, split_by_label, write

    _python("examples.sentiment.minilm", str(work / "base"))
    source = fetch("vaderSentiment")
    for domain in DOMAINS:
        train, held_out = split_by_label(labelled(source, domain))
        recipe: dict[str, object] = {"source": source.name, "held-out": 256}
        rows = partial(write, train, spread(held_out, 256))
        once(work / "text" / domain, recipe, rows)
        line = [str(work / "base"), str(work / "text" / domain / "train.jsonl")]
        line += [str(work / domain), "--batch-size", "32", "--max-length", "48"]
        _python("examples.finetune", *line, "--steps", str(steps), "--every", "20")
    options = {"longest": 48, "unbiased": "exact", "samples": 256, "walked": 96, "held_out": 192}
    return Family(work, DOMAINS, options)


def specialists(demo: Path) -> Family | None:
    """The quickstart's language models, where it has made them."""
    if not all((demo / name / "model.safetensors").exists() for name in ("base", *SPECIALISTS)):
        print(f"no language models: {demo} has none (make demo)", flush=True)
        return None
    options = {"longest": 64, "unbiased": "mc", "samples": 32, "walked": 16, "held_out": 16}
    return Family(demo, SPECIALISTS, options)


def _python(module: str, *line: str) -> None:
    subprocess.run([sys.executable, "-m", module, *line], check=True)


def sidecar(family: Family, work: Path, name: str, estimator: str) -> Path:
    """The Fisher of a member, by the command a user would give."""
    out = work / "sidecars" / f"{name}-{estimator}.safetensors"
    if out.exists():  # that command would digest the model before it says "up to date"
        return out
    rows = family.folder / "text" / name / "train.jsonl"
    line = ["fisher", str(family.folder / name), "--data", str(rows), "--quiet"]
    line += ["--samples", str(family.samples), "--max-length", str(family.longest)]
    _python("mergekit_cl", *line, "--estimator", estimator, "-o", str(out))
    return out


def read_sidecar(path: Path) -> tuple[dict[str, Tensor], float]:
    """Values as float32 per token, and their mean."""
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["clmerge.fisher"])
        values = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    per_token = said["examples"] / said["tokens"]
    count = sum(value.numel() for value in values.values())
    mean = sum(float(value.double().sum()) for value in values.values()) / count
    return {name: value * per_token for name, value in values.items()}, mean * per_token


class Parent:
    """A model whose merges are judged, with what was measured once."""

    def __init__(self, family: Family, work: Path, probe: Probe, name: str) -> None:
        self.probe, self.name, self.family = probe, name, family
        self.weights = read_weights(family.folder / name)
        rows = family.folder / "text" / name
        chosen = spread(read_rows(rows / "train.jsonl"), family.walked)
        held_out = spread(read_rows(rows / "held-out.jsonl"), family.held_out)
        self.sample = Rows(probe.tokenizer, chosen, family.longest)
        self.held_out = Rows(probe.tokenizer, held_out, family.longest)
        self.on_sample = probe.logits(self.weights, self.sample)
        self.on_held_out = probe.logits(self.weights, self.held_out)
        self.fisher, _ = read_sidecar(sidecar(family, work, name, family.unbiased))
        layers = 1 + max(int(layer(n)[6:]) for n in self.weights if layer(n).startswith("layer"))
        self.per_group = max(1, layers // GROUPS)

    def group(self, name: str) -> str:
        """What is calibrated together: some neighbouring layers, what is before or after them."""
        where = layer(name)
        return f"{int(where[6:]) // self.per_group}" if where.startswith("layer") else where

    def by_group(self, step: Weights) -> dict[str, float]:
        """1/2 sum F step^2 of each group, nats per token."""
        found: dict[str, float] = {}
        for name, moved in step.items():
            part = float((self.fisher[name] * moved.square()).sum(dtype=torch.float64)) / 2
            found[self.group(name)] = found.get(self.group(name), 0.0) + part
        return found

    def on_rows(self, step: Weights) -> float:
        """KL(parent || parent + step) on the sample, nats per token."""
        return divergence(
            self.on_sample, self.probe.logits(moved_by(self.weights, step), self.sample)
        )

    def calibrated(self, other: Weights) -> dict[str, Any]:
        """What a walk to another model measures: whole, half-way, and one layer at a time."""
        step = difference(self.weights, other)
        half = {name: moved / 2 for name, moved in step.items()}
        groups = sorted({self.group(name) for name in step})
        return {
            "predicted": self.by_group(step),
            "whole": self.on_rows(step),
            "half": self.on_rows(half),
            "groups": {
                g: self.on_rows({n: m for n, m in half.items() if self.group(n) == g})
                for g in groups
            },
        }

    def judged(self, step: Weights) -> dict[str, Any]:
        """Predicted and measured for one merge."""
        logits = self.probe.logits(moved_by(self.weights, step), self.held_out)
        return {
            "distance": norm(step),
            "predicted": self.by_group(step),
            "quadratic": self.probe.quadratic(self.weights, step, self.sample),
            "kl": divergence(self.on_held_out, logits),
            "rise": loss(logits, self.held_out) - loss(self.on_held_out, self.held_out),
        }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Floating tensors as float32."""
    found = load_file(folder / "model.safetensors")
    return {name: t.float() for name, t in found.items() if t.is_floating_point()}


def difference(parent: Weights, other: Weights) -> dict[str, Tensor]:
    """other - parent where they differ."""
    found = {name: other[name] - weight for name, weight in parent.items()}
    return {name: moved for name, moved in found.items() if moved.any()}


def moved_by(weights: Weights, step: Weights) -> dict[str, Tensor]:
    """weights + step."""
    return {n: w + step[n] if n in step else w for n, w in weights.items()}


def norm(step: Weights) -> float:
    """Length of a step."""
    return math.sqrt(sum(float(moved.square().sum(dtype=torch.float64)) for moved in step.values()))


def merge(
    step: Weights, mine: Weights | None, theirs: Weights | None, scale: float, length: float
) -> dict[str, Tensor] | None:
    """The way to a merge whose weight is such that it lies `length` away; None where none does.

    mine, theirs: Fishers, or None for an average. scale: what brings theirs to the scale of mine.
    """
    if norm(step) < length:
        return None
    if mine is None or theirs is None:
        return {name: moved * (length / norm(step)) for name, moved in step.items()}
    low, high = -16.0, 16.0
    while high - low > 1e-3:
        weight = scale * math.exp((low + high) / 2)
        found = {
            n: s * theirs[n] * weight / (mine[n] + theirs[n] * weight).clamp_min(1e-38)
            for n, s in step.items()
        }
        low, high = (low, (low + high) / 2) if norm(found) > length else ((low + high) / 2, high)
    return found if abs(norm(found) / length - 1) < 0.01 else None


def records(family: Family, work: Path, kept: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, what was found) of every calibration and merge that is not kept yet."""
    probe = Probe(family.folder / "base")
    all_weights = {name: read_weights(family.folder / name) for name in ("base", *family.members)}
    reach = {
        a: DISTANCE
        * min(norm(difference(all_weights[a], all_weights[b])) for b in family.members if a != b)
        for a in family.members
    }
    layers = 1 + max(int(layer(n)[6:]) for n in all_weights["base"] if layer(n).startswith("layer"))
    for name in family.members:
        parent = Parent(family, work, probe, name)
        for other in ("base", *(m for m in family.members if m != name)):
            key = f"{name} to {other}"
            if key not in kept:
                yield key, parent.calibrated(all_weights[other])
        for partner in (m for m in family.members if m != name):
            whole = difference(parent.weights, all_weights[partner])
            for subset, how in WAYS:
                key = f"{name} + {partner}, {subset}, {how}"
                if key in kept:
                    continue
                step = {n: s for n, s in whole.items() if SUBSETS[subset](n, layers)}
                fishers: list[Any] = [None, None]
                scale = 1.0
                if how != "linear":
                    estimator = family.unbiased if how == "unbiased" else how
                    both = [
                        read_sidecar(sidecar(family, work, m, estimator)) for m in (name, partner)
                    ]
                    fishers, scale = [values for values, _ in both], both[0][1] / both[1][1]
                found = merge(step, *fishers, scale, reach[name])
                judged = None if found is None else parent.judged(found)
                yield key, judged


def measure(family: Family, work: Path) -> dict[str, Any]:
    """Every record of a family; kept in a file, a line each, as soon as it is known."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "records.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    kept = dict(json.loads(line) for line in lines)
    with file.open("a") as stream:
        for key, found in records(family, work, kept):
            kept[key] = found
            stream.write(json.dumps([key, found]) + "\n")
            stream.flush()
            print(
                key if found is None else f"{key}: {found.get('kl', found.get('whole')):.4f}",
                flush=True,
            )
    return kept


def main(given: argparse.Namespace) -> None:
    """Make what is missing, then print the tables."""
    families = {
        "classifiers": (
            classifiers(given.work / "classifiers", given.steps),
            given.work / "classifiers",
        )
    }
    if (models := specialists(given.demo)) is not None:
        families["language models"] = (models, given.work / "language-models")
    found = {name: measure(family, folder) for name, (family, folder) in families.items()}
    print_tables(found, given.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="a folder, 3 GB")
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=60, help="of tuning each classifier")
    parser.add_argument("--plot", type=Path, help="a .png or .svg to write")
    main(parser.parse_args())
