"""How often a gate errs, and how often it can tell: simulated, with truths that are known.

    python benchmarks/gate_errors.py [--times 500] [--rows losses.jsonl]

Rows of 20 to 200 tokens; the candidate truly has DELTA nats per token more, with noise over rows of
three shapes, each of the same standard error. Prints the tables of docs/gate.md. `--rows`, a file
that `clmerge gate --write-rows` wrote, adds what pairing is worth on it. About ten minutes on two
free cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from mergekit_cl.decide.bootstrap import Bounds, bounds
from mergekit_cl.decide.gate import power_of
from mergekit_cl.decide.ratio import Array, ratio
from mergekit_cl.decide.spending import spend
from mergekit_cl.gating.rowsfile import read_rows_file

MARGIN, ALPHA, DRAWS = 0.02, 0.05, 1000
Z = NormalDist().inv_cdf(1 - ALPHA)
Generator = np.random.Generator
Noise = Callable[[Generator, int], Array]

SHAPES: dict[str, Noise] = {
    "normal": lambda draw, count: draw.normal(size=count),
    "skewed (lognormal)": lambda draw, count: (
        (draw.lognormal(size=count) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    ),
    "2 % of rows rise": lambda draw, count: (
        0.9 * ((draw.random(count) < 0.02) - 0.02) / np.sqrt(0.02 * 0.98)
        + np.sqrt(0.19) * draw.normal(size=count)
    ),
}
"""Of mean 0 and standard deviation 1 over rows."""


def pairs(
    noise: Noise, spread: float, delta: float, count: int, times: int
) -> Iterator[tuple[Array, Array]]:
    """Differences and tokens of `count` rows, again and again."""
    draw = np.random.default_rng([count, int(1000 * spread), int(1000 * delta)])
    for _ in range(times):
        tokens = draw.integers(20, 200, count).astype(np.float64)
        yield tokens * (delta + spread * noise(draw, count)), tokens


def percentile_upper(values: Array, weights: Array) -> float:
    """The upper end by the quantile of resampled ratios, as many tools take it."""
    drawn = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    sums = np.stack([values, weights], axis=1)[drawn].sum(axis=1)
    return float(np.quantile(sums[:, 0] / sums[:, 1], 1 - ALPHA))


def errors(times: int) -> None:
    """Accepting what is worse by the margin: should be 5 %."""
    print(f"\ntrue delta = margin = {MARGIN}; share accepted, {times} repetitions\n")
    print("| noise over rows | rows | not significantly worse | percentiles | normal | the gate |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, noise in SHAPES.items():
        for count, spread in ((500, 0.5), (2000, 1.0)):
            accepted = np.zeros(4)
            for values, weights in pairs(noise, spread, MARGIN, count, times):
                found = bounds(values, weights, ALPHA, draws=DRAWS, seed=0)
                accepted += [
                    found.value - Z * found.error < 0,
                    percentile_upper(values, weights) < MARGIN,
                    found.value + Z * found.error < MARGIN,
                    found.upper < MARGIN,
                ]
            shares = " | ".join(f"{share:.1%}" for share in accepted / times)
            print(f"| {name} | {count} | {shares} |", flush=True)


def few_rows(times: int) -> None:
    """The same where rows are few."""
    print(f"\ntrue delta = margin, 2 % of rows rise; share accepted by the gate's bound, {times}\n")
    print("| rows | accepted |\n|---:|---:|")
    noise = SHAPES["2 % of rows rise"]
    for count in (50, 100, 200, 500, 1000):
        found = [
            bounds(values, weights, ALPHA, draws=DRAWS, seed=0).upper < MARGIN
            for values, weights in pairs(noise, 0.5, MARGIN, count, times)
        ]
        print(f"| {count} | {np.mean(found):.1%} |", flush=True)


def power(times: int) -> None:
    """P(accept | true delta = 0): what the gate prints beside how often it happens."""
    print(f"\ntrue delta = 0, normal noise; {times} repetitions\n")
    print("| standard deviation over rows | rows | power printed (mean) | accepted |")
    print("|---:|---:|---:|---:|")
    for spread in (0.1, 0.2, 0.4):
        for count in (500, 1000, 2000):
            printed, accepted = [], []
            for values, weights in pairs(SHAPES["normal"], spread, 0.0, count, times):
                found = bounds(values, weights, ALPHA, draws=DRAWS, seed=0)
                printed.append(_power(found))
                accepted.append(found.upper < MARGIN)
            shares = f"{np.mean(printed):.0%} | {np.mean(accepted):.0%}"
            print(f"| {spread} | {count} | {shares} |", flush=True)


def _power(found: Bounds) -> float:
    return power_of(MARGIN, found.upper - found.value, found.error)


def looks(times: int) -> None:
    """Accepting at least one of several candidates that are all worse by the margin."""
    print(f"\nevery candidate is worse by the margin, 500 rows; {times} repetitions\n")
    print("| looks | accepted one, each at 5 % | accepted one, with a ledger |\n|---:|---:|---:|")
    draw = np.random.default_rng(0)
    for count in (1, 4, 12, 52):
        once, spent = 0, 0
        for _ in range(times):
            # The estimates of many looks, whose bounds are normal at this size.
            distances = draw.normal(size=count)
            once += bool((distances < -Z).any())
            ends = [NormalDist().inv_cdf(spend(ALPHA, look)) for look in range(1, count + 1)]
            spent += bool((distances < ends).any())
        print(f"| {count} | {once / times:.1%} | {spent / times:.1%} |", flush=True)


def pairing(path: Path) -> None:
    """How many rows an unpaired comparison would need for the same standard error."""
    print(f"\npaired and unpaired standard errors, nats per token\n\n{_HEAD}")
    measured = read_rows_file(path)
    for role, suites in measured.losses.items():
        if role == "candidate":
            continue
        for name, old in suites.items():
            new = measured.losses["candidate"][name]
            tokens = np.asarray(old.tokens, dtype=np.float64)
            mine, theirs = np.asarray(new.nats), np.asarray(old.nats)
            paired = ratio(mine - theirs, tokens)[1] or 0.0
            alone = np.hypot(ratio(mine, tokens)[1] or 0.0, ratio(theirs, tokens)[1] or 0.0)
            more = f"{(alone / paired) ** 2:.0f}" if paired else "-"
            print(f"| {name} | {role} | {len(tokens)} | {paired:.4f} | {alone:.4f} | {more} x |")


_HEAD = """\
| suite | against | rows | paired | unpaired | rows for the same |
|---|---|---:|---:|---:|---:|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--rows", type=Path)
    given = parser.parse_args()
    errors(given.times)
    few_rows(given.times)
    power(given.times)
    looks(20 * given.times)
    if given.rows is not None:
        pairing(given.rows)


if __name__ == "__main__":
    main()
