"""What a sequence of tasks did to a model: the matrix R and what follows from it.

R[i][j] is the score on task j after learning task i, T the tasks learned so far, b_j the score on
task j before anything was learned. Scores are losses (lower is better) or accuracies (higher); a
transfer above 0 is a gain in either case, a forgetting above 0 a loss.

    average            mean over j <= T of R[T][j]
    backward transfer  mean over j < T of the gain from R[j][j] to R[T][j]
    forward transfer   mean over 1 < j <= T of the gain from b_j to R[j-1][j]
    forgetting         mean over j < T of what lies between the best R[l][j], l < T, and R[T][j]

Sources: Lopez-Paz and Ranzato 2017 (average and transfers); Chaudhry et al. 2018 (forgetting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from mergekit_cl.decide.ratio import Array, ratio
from mergekit_cl.errors import MismatchError

Better = Literal["lower", "higher"]

BEFORE = -1
"""The row of scores from before the first task."""

Step = tuple[int, int, int]
"""(task, from row, to row): a gain that a metric is the mean of."""


@dataclass(frozen=True)
class Scores:
    """One model on the rows of one task, in an order that is the task's own.

    values, weights: (n,). The score is sum values / sum weights: nats and tokens, or 0/1 and ones.
    """

    values: Array
    weights: Array


@dataclass(frozen=True)
class Interval:
    """A value with a two-sided confidence interval; without one where there is but one row."""

    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class TaskMatrix:
    """R with intervals, and what follows from it; None is what was not measured or is undefined.

    entries: one row per task learned, one column per task. forgetting_of: one per task learned but
    the last.
    """

    tasks: tuple[str, ...]
    better: Better
    alpha: float
    entries: tuple[tuple[Interval | None, ...], ...]
    before: tuple[Interval | None, ...]
    average: Interval | None
    backward_transfer: Interval | None
    forward_transfer: Interval | None
    forgetting: Interval | None
    forgetting_of: tuple[Interval, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def task_matrix(
    tasks: Sequence[str],
    measured: Sequence[Sequence[Scores | None]],
    *,
    better: Better,
    before: Sequence[Scores | None] | None = None,
    alpha: float = 0.05,
) -> TaskMatrix:
    """R and its metrics from per-row scores, with intervals that a share `alpha` misses.

    measured: one row per task learned. Intervals are over the rows of the tasks, the tasks fixed.
    Gains are taken row by row, so what one task's rows have in common cancels; single accuracies
    have Wilson's interval. The best of several scores is taken for given, which makes forgetting a
    little too large where many are equally good. Raises MismatchError where a task has scores of
    different rows, or a score of what was just learned is missing.
    """
    first = tuple(before) if before is not None else (None,) * len(tasks)
    table = [*measured, first]  # row BEFORE is the last
    _check(tasks, table)
    learned = len(measured)
    values = [[_value(one) for one in row] for row in table]

    def gains(steps: Sequence[Step] | None) -> list[tuple[float, float]] | None:
        return None if steps is None else [_gain(table, step, better) for step in steps]

    def mean(steps: Sequence[Step] | None) -> Interval | None:
        found = gains(steps)
        return _mean(found, alpha) if found else None

    lost = forgetting_steps(values, learned, better)
    last = [_estimate(one) for one in measured[-1][:learned] if one is not None] if learned else []
    return TaskMatrix(
        tuple(tasks),
        better,
        alpha,
        tuple(tuple(_interval(one, alpha) for one in row) for row in measured),
        tuple(_interval(one, alpha) for one in first),
        _mean(last, alpha) if last and len(last) == learned else None,
        mean(backward_steps(learned)),
        mean(forward_steps(values, learned)),
        _opposite(mean(lost)),
        tuple(_negated(_mean([one], alpha)) for one in gains(lost) or ()),
    )


@dataclass(frozen=True)
class Summary:
    """The four numbers of one matrix; None where undefined."""

    average: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None


def summarise(
    matrix: Sequence[Sequence[float | None]],
    *,
    better: Better,
    before: Sequence[float | None] | None = None,
) -> Summary:
    """The metrics of a matrix that is given as numbers, without intervals."""
    learned = len(matrix)
    table = [list(row) for row in matrix]
    table.append(list(before) if before is not None else [None] * max(map(len, matrix), default=0))
    sign = 1.0 if better == "higher" else -1.0

    def mean(steps: Sequence[Step] | None) -> float | None:
        if not steps:
            return None
        pairs = [(table[to][task], table[start][task]) for task, start, to in steps]
        found = [sign * (new - old) for new, old in pairs if new is not None and old is not None]
        return math.fsum(found) / len(found) if len(found) == len(steps) else None

    last = [value for value in table[learned - 1][:learned] if value is not None] if learned else []
    lost = mean(forgetting_steps(table, learned, better))
    return Summary(
        math.fsum(last) / learned if last and len(last) == learned else None,
        mean(backward_steps(learned)),
        mean(forward_steps(table, learned)),
        None if lost is None else 0.0 - lost,
    )


def backward_steps(learned: int) -> list[Step]:
    """From just after a task to the end, for every task but the last."""
    return [(task, task, learned - 1) for task in range(learned - 1)]


def forward_steps(table: Sequence[Sequence[float | None]], learned: int) -> list[Step] | None:
    """From before everything to just before a task; None where a score of these is missing."""
    steps = [(task, BEFORE, task - 1) for task in range(1, learned)]
    there = all(table[row][task] is not None for task, *rows in steps for row in rows)
    return steps if there else None


def forgetting_steps(
    table: Sequence[Sequence[float | None]], learned: int, better: Better
) -> list[Step]:
    """From a task's best score before the end to the end, the first of equals."""
    best: Callable[..., int] = max if better == "higher" else min
    steps = []
    for task in range(learned - 1):
        there = [row for row in range(learned - 1) if table[row][task] is not None]
        steps.append((task, best(there, key=lambda row: table[row][task]), learned - 1))
    return steps


def _check(tasks: Sequence[str], table: Sequence[Sequence[Scores | None]]) -> None:
    for row, scores in enumerate(table[:-1]):
        if len(scores) != len(tasks) or row >= len(tasks):
            raise MismatchError(
                "the task matrix has other tasks than were named",
                detail=f"row {row}: {len(scores)} scores; {len(tasks)} tasks",
            )
        missing = [tasks[task] for task in range(row + 1) if scores[task] is None]
        if missing:
            raise MismatchError(
                "a task that was learned has no score",
                detail=f"after {tasks[row]}: {', '.join(missing)}",
            )
    for task, name in enumerate(tasks):
        weights = [one.weights for row in table if (one := row[task]) is not None]
        if any(not np.array_equal(weights[0], other) for other in weights[1:]):
            raise MismatchError(
                "a task was measured on different rows", detail=f"{name}: the rows' weights differ"
            )


def _value(scores: Scores | None) -> float | None:
    return None if scores is None else ratio(scores.values, scores.weights)[0]


def _estimate(scores: Scores) -> tuple[float, float]:
    value, error = ratio(scores.values, scores.weights)
    return value, math.nan if error is None else error


def _gain(
    table: Sequence[Sequence[Scores | None]], step: Step, better: Better
) -> tuple[float, float]:
    task, start, to = step
    old, new = table[start][task], table[to][task]
    assert old is not None
    assert new is not None
    value, error = _estimate(Scores(new.values - old.values, new.weights))
    return (value, error) if better == "higher" else (0.0 - value, error)


def _mean(estimates: Sequence[tuple[float, float]], alpha: float) -> Interval:
    """The mean over tasks, whose rows are independent of each other's."""
    value = math.fsum(one for one, _ in estimates) / len(estimates)
    error = math.hypot(*(error for _, error in estimates)) / len(estimates)
    if math.isnan(error):
        return Interval(value)
    reach = NormalDist().inv_cdf(1 - alpha / 2) * error
    return Interval(value, value - reach, value + reach)


def _interval(scores: Scores | None, alpha: float) -> Interval | None:
    if scores is None:
        return None
    zero_one = np.isin(scores.values, (0.0, 1.0)).all() and (scores.weights == 1).all()
    if not zero_one:
        return _mean([_estimate(scores)], alpha)
    # Wilson 1927: also right where every row, or none, is.
    count, share = len(scores.values), float(scores.values.mean())
    z = NormalDist().inv_cdf(1 - alpha / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count) ** 2 / 4)
    return Interval(share, min(middle - reach, share), max(middle + reach, share))


def _negated(interval: Interval) -> Interval:
    lower, upper = interval.lower, interval.upper
    if lower is None or upper is None:
        return Interval(0.0 - interval.value)
    return Interval(0.0 - interval.value, 0.0 - upper, 0.0 - lower)


def _opposite(interval: Interval | None) -> Interval | None:
    return None if interval is None else _negated(interval)
