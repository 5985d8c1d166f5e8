"""What benchmarks/prediction.py measured, as tables and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Judge = Callable[[Record, Record, Record], float]


def diagonal(found: Record, base: Record, partner: Record) -> float:
    """`predicted_kl` per token."""
    return math.fsum(found["predicted"].values())


def _by_calibration(found: Record, walk: Record, at: str) -> float:
    share = {"whole": 1.0, "half": 0.25}[at]
    alone = share * math.fsum(walk["predicted"].values())
    return diagonal(found, walk, walk) * walk[at] / alone


def _by_groups(found: Record, walk: Record) -> float:
    """Each group by its own ratio, all by one more that makes the walk itself come out right."""
    ratio = {g: walk["groups"][g] / (walk["predicted"][g] / 4) for g in walk["groups"]}
    together = walk["half"] / math.fsum(walk["groups"].values())
    return together * math.fsum(ratio.get(g, 0) * v for g, v in found["predicted"].items())


# Half-way to the partner is their plain average.
METHODS: dict[str, Judge] = {
    "diagonal alone (`predicted_kl`)": diagonal,
    "calibrated to the base (`predicted_loss`)": lambda f, b, p: _by_calibration(f, b, "whole"),
    "calibrated half-way to the base": lambda f, b, p: _by_calibration(f, b, "half"),
    "the same, layer by layer": lambda f, b, p: _by_groups(f, b),
    "calibrated to the partner": lambda f, b, p: _by_calibration(f, p, "whole"),
    "calibrated to the plain average": lambda f, b, p: _by_calibration(f, p, "half"),
    "the same, layer by layer ": lambda f, b, p: _by_groups(f, p),
    "whole Fisher along the merge, with rows": lambda f, b, p: f["quadratic"],
}


def judged(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per merge: who, how, what was measured, and what each method says."""
    found = []
    for key, one in records.items():
        if one is None or " + " not in key:
            continue
        parent, rest = key.split(" + ")
        partner, subset, how = rest.split(", ")
        walks = (records[f"{parent} to base"], records[f"{parent} to {partner}"])
        said = {name: method(one, *walks) for name, method in METHODS.items()}
        names = {"parent": parent, "partner": partner, "subset": subset, "how": how}
        found.append(names | {"said": said, "kl": one["kl"], "rise": one["rise"]})
    return found


def ranks(values: Sequence[float]) -> list[float]:
    """Places in order, equal values sharing theirs."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's."""
    return statistics.correlation(ranks(one), ranks(other))


def off_by(said: Sequence[float], measured: Sequence[float]) -> tuple[float, float, float]:
    """Median of measured / said; and the factors that half, and nine in ten, are within."""
    ratios = [m / s for s, m in zip(said, measured, strict=True)]
    factors = sorted(math.exp(abs(math.log(ratio))) for ratio in ratios)
    return statistics.median(ratios), factors[len(factors) // 2], factors[len(factors) * 9 // 10]


def print_tables(families: Mapping[str, Mapping[str, Any]], plot: Path | None) -> None:
    """Print a table per family; write the picture if there is a place for it."""
    every = {name: judged(records) for name, records in families.items()}
    for name, merges in every.items():
        parents = sorted({one["parent"] for one in merges})
        low, high = min(m["kl"] for m in merges), max(m["kl"] for m in merges)
        print(f"\n{name}: {len(merges)} merges, KL {low:.4f} to {high:.4f} nats per token\n")
        print(
            "| predicted by | rank correlation: each parent | mean | with rise | "
            "measured is | half within | 90 % within |"
        )
        print("|---|---|---|---|---|---|---|")
        for method in METHODS:
            told = [_ranked(merges, parent, method, "kl") for parent in parents]
            rise = [_ranked(merges, parent, method, "rise") for parent in parents]
            ratio, half, most = off_by(
                [m["said"][method] for m in merges], [m["kl"] for m in merges]
            )
            print(
                f"| {method.strip()} | {', '.join(f'{t:.2f}' for t in told)} | "
                f"{statistics.mean(told):.2f} | {statistics.mean(rise):.2f} | "
                f"x {ratio:.2f} | x {half:.2f} | x {most:.2f} |"
            )
    if plot is not None:
        draw(every, plot)


def _ranked(merges: Sequence[Mapping[str, Any]], parent: str, method: str, what: str) -> float:
    mine = [one for one in merges if one["parent"] == parent]
    return rank_correlation([one["said"][method] for one in mine], [one[what] for one in mine])


def draw(families: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Predicted against measured, one panel per family and method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [m for m in METHODS if "predicted_loss" in m or "plain average" in m]
    shown += ["whole Fisher along the merge, with rows"]
    figure, axes = pyplot.subplots(
        len(families), len(shown), figsize=(4 * len(shown), 3.6 * len(families)), squeeze=False
    )
    for row, (family, merges) in zip(axes, families.items(), strict=True):
        values = [m["kl"] for m in merges] + [m["said"][s] for m in merges for s in shown]
        limits = (min(values) / 1.3, max(values) * 1.3)
        for axis, method in zip(row, shown, strict=True):
            for parent in sorted({one["parent"] for one in merges}):
                mine = [one for one in merges if one["parent"] == parent]
                axis.scatter(
                    [one["said"][method] for one in mine],
                    [one["kl"] for one in mine],
                    s=14,
                    label=parent,
                )
            axis.plot(limits, limits, color="grey", linewidth=0.8)
            axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
            axis.set_title(method.replace("`", ""), fontsize=9)
            axis.set_xlabel("predicted, nats per token", fontsize=8)
            axis.set_ylabel(f"{family}: measured KL", fontsize=8)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
