"""How long `clmerge` takes to say anything, beside the floor: importing click alone.

    python benchmarks/startup.py

Prints the median of several runs in processes of their own, and the ratio to the floor, which the
project wants at 2.5 or less. Not a test: a busy machine stretches both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
LIMIT = 2.5
FLOOR = "import click"
LINES = {
    "clmerge --help": ["-m", "mergekit_cl", "--help"],
    "clmerge fisher-merge --help": ["-m", "mergekit_cl", "fisher-merge", "--help"],
    "clmerge linear-merge a b --weigths 1,2": [
        *("-m", "mergekit_cl", "linear-merge"),
        *("a", "b", "--weigths", "1,2"),
    ],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Time the floor and each line in turn, so that both meet the same machine."""
    lines = {f"python -c {FLOOR!r}": ["-c", FLOOR], **LINES}
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(ROUNDS):
        for name, arguments in lines.items():
            times[name].append(seconds(arguments))
    floor, *_ = medians = [statistics.median(measured) for measured in times.values()]
    for name, median in zip(lines, medians, strict=True):
        print(f"{median * 1000:7.0f} ms  {median / floor:4.2f} x  {name}")
    worst = max(medians) / floor
    print(f"worst ratio {worst:.2f}, wanted at most {LIMIT}")


if __name__ == "__main__":
    main()
