"""What benchmarks/continual.py runs: data, settings, methods and how long each task is learned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from benchmarks.continual_data import Data
from benchmarks.continual_learners import (
    Method,
    Schedule,
    Setting,
    Task,
    permuted_tasks,
    split_tasks,
)

REPLAYED = 200
"""Rows in a replay buffer, of all tasks together."""


@dataclass(frozen=True)
class Suite:
    """One sequence of tasks on one data set; strengths are the lambdas that are tried."""

    name: str
    title: str
    data: str
    settings: tuple[Setting, ...]
    schedule: Schedule
    strengths: tuple[float, ...]
    per_task: int = 2
    permutations: int = 0

    def tasks(self, data: Data, setting: Setting) -> list[Task]:
        """The tasks in their order."""
        if self.permutations:
            return permuted_tasks(data, self.permutations)
        return split_tasks(data, self.per_task, setting)

    def methods(self) -> tuple[Method, ...]:
        """Everything that is compared, in the order of the table's rows."""
        weak, middle = self.strengths[0], self.strengths[1]
        return (
            Method("naive"),
            *(Method(f"EWC, exact, {_lambda(s)}", "exact", s) for s in self.strengths),
            *(Method(f"EWC, empirical, {_lambda(s)}", "empirical", s) for s in self.strengths),
            *(
                Method(f"online EWC, gamma {gamma:g}, {_lambda(middle)}", "exact", middle, gamma)
                for gamma in (1.0, 0.9)
            ),
            Method(f"replay of {REPLAYED} rows", replayed=REPLAYED),
            Method(f"replay and EWC, {_lambda(weak)}", "exact", weak, replayed=REPLAYED),
            Method(f"GDumb, {REPLAYED} rows", replayed=REPLAYED, policy="gdumb", dumb=True),
            Method("joint", joint=True),
        )


SPLIT: tuple[Setting, ...] = ("task", "domain", "class")

SUITES = (
    Suite(
        "mnist",
        "Split MNIST: 5,000 digits, 5 tasks of 2 digits",
        "mnist-5k",
        SPLIT,
        Schedule(steps=150),
        (1e2, 1e3, 1e4),
    ),
    Suite(
        "fashion",
        "Split Fashion-MNIST: 70,000 pictures, 5 tasks of 2 kinds of clothes",
        "fashion",
        SPLIT,
        Schedule(steps=300),
        (1e2, 1e3, 1e4),
    ),
    Suite(
        "permuted",
        "Permuted MNIST: 5,000 digits, 10 orders of their pixels",
        "mnist-5k",
        ("domain",),
        Schedule(steps=200, hidden=256),
        (1e1, 1e2, 1e3),
        permutations=10,
    ),
    Suite(
        "newsgroups",
        "20 Newsgroups: 18,800 posts, 5 tasks of 4 groups",
        "newsgroups",
        ("task", "class"),
        Schedule(steps=100),
        (1e1, 1e2, 1e3),
        per_task=4,
    ),
)


@dataclass(frozen=True)
class Cell:
    """One run: a method on a suite in a setting, from one seed."""

    suite: Suite
    setting: Setting
    method: Method
    seed: int

    @property
    def name(self) -> str:
        """For people, and for `--only`."""
        return f"{self.suite.name}/{self.setting}/{self.method.name}/{self.seed}"

    @property
    def file(self) -> str:
        """Where its result is kept: another schedule or method is another file."""
        meaning = asdict(self) | {"suite": asdict(self.suite) | {"title": "", "strengths": ()}}
        text = json.dumps(meaning, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest() + ".json"


def cells(seeds: int) -> list[Cell]:
    """Every run: suite by suite, and in each all of one seed before the next."""
    return [
        Cell(suite, setting, method, seed)
        for suite in SUITES
        for seed in range(seeds)
        for setting in suite.settings
        for method in suite.methods()
    ]


def _lambda(strength: float) -> str:
    return f"lambda {strength:,.0f}"
