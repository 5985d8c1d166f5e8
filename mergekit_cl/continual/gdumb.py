"""GDumb: keep the first rows of every class in balance, and learn from them alone.

The sampler is greedy: a row never displaces an older one of its class, only a class that takes too
much room gives up rows. The learner starts from the initial weights and sees the buffer alone, so
it is a yardstick: a method that does not beat it gains nothing from the sequence.

Source: Prabhu et al. 2020. Theirs drops a random row of the largest class, ours the newest, so that
the buffer follows from rows and steps and not from the order in which processes deliver them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from mergekit_cl.continual.reservoir import keyed

T = TypeVar("T")

HIGHEST, LOWEST = 0.05, 0.0005
"""Learning rates of the paper's schedule."""


def arrival(seed: int, step: int, row_id: str) -> tuple[int, int]:
    """The order in which rows of one class count: by step; at random within a step."""
    return step, keyed(seed, row_id)


def batches(
    rows: Sequence[T], ids: Sequence[str], size: int, seed: int, epoch: int
) -> Iterator[list[T]]:
    """Every row once, in an order that (seed, epoch) fixes; the last batch may be smaller."""
    order = sorted(range(len(rows)), key=lambda index: keyed(seed, "epoch", epoch, ids[index]))
    for start in range(0, len(order), size):
        yield [rows[index] for index in order[start : start + size]]


def learning_rate(epoch: int, highest: float = HIGHEST, lowest: float = LOWEST) -> float:
    """The rate of an epoch: one at a tenth of the highest, then cosines that restart.

    Cycles of 1, 2, 4, ... epochs from `highest` down to `lowest` (Loshchilov and Hutter 2017).
    """
    if epoch == 0:
        return highest / 10
    cycle = epoch.bit_length() - 1
    place = (epoch - 2**cycle) / 2**cycle
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * place)) / 2
