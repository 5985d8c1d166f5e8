"""A sequence of tasks, a small network, and the ways of learning them one after another.

What is compared is the package's own: `fisher.estimate`, mergekit_cl/continual/ewc.py and
combining.py, buffer.py and mixing.py. Here are only the network and the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import fisher
from benchmarks.continual_data import Data, Split
from mergekit_cl.continual.buffer import Buffer, Kept, Policy
from mergekit_cl.continual.combining import add_protections, decay_protection
from mergekit_cl.continual.ewc import Protection, add_penalty_gradient
from mergekit_cl.continual.gdumb import batches, learning_rate
from mergekit_cl.continual.mixing import mix
from mergekit_cl.training.rows import make_row

Setting = Literal["task", "domain", "class"]
"""Whether a row's task is told at test time, does not matter, or must be found out.

Source: van de Ven and Tolias 2019.
"""


@dataclass(frozen=True)
class Task:
    """Rows of one task; `outputs` are those of the network that compete for a row.

    labels are among `outputs`. In the class-incremental setting these grow from task to task.
    """

    train: Split
    test: Split
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast each task is learned; Adam, begun anew for each."""

    steps: int
    batch: int = 128
    rate: float = 1e-3
    hidden: int = 100
    fisher_rows: int = 1000


@dataclass(frozen=True)
class Method:
    """One way of learning; with nothing set, each task is simply trained after the other.

    strength: lambda of EWC. gamma: of online EWC. replayed: rows in the buffer. joint: every task
    is trained on together with all before it. dumb: GDumb, from the buffer alone.
    """

    name: str
    estimator: str | None = None
    strength: float = 0.0
    gamma: float | None = None
    replayed: int = 0
    policy: Policy = "balanced"
    ratio: float = 0.5
    joint: bool = False
    dumb: bool = False


class Network(nn.Module):
    """Two hidden layers; `forward` gives the logits of `active` outputs."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )
        self.active = torch.arange(outputs)

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = self.layers(input)[:, self.active]
        return found


def split_tasks(data: Data, per_task: int, setting: Setting) -> list[Task]:
    """The classes in order, `per_task` at a time."""
    count = int(data.train.y.max()) + 1
    groups = [tuple(range(first, first + per_task)) for first in range(0, count, per_task)]
    tasks = []
    for place, group in enumerate(groups):
        train, test = data.train.of(group), data.test.of(group)
        outputs = group if setting == "task" else tuple(range(per_task * (place + 1)))
        if setting == "domain":
            train, test = (Split(part.x, part.y % per_task) for part in (train, test))
            outputs = tuple(range(per_task))
        tasks.append(Task(train, test, outputs))
    return tasks


def permuted_tasks(data: Data, count: int) -> list[Task]:
    """The same rows `count` times, their features in another order each time but the first."""
    tasks = []
    for place in range(count):
        generator = torch.Generator().manual_seed(place)
        order = torch.arange(data.train.x.shape[1])
        if place:
            order = torch.randperm(len(order), generator=generator)
        outputs = tuple(range(int(data.train.y.max()) + 1))
        tasks.append(Task(data.train.permuted(order), data.test.permuted(order), outputs))
    return tasks


def learn(
    tasks: list[Task], setting: Setting, method: Method, schedule: Schedule, seed: int
) -> list[list[float | None]]:
    """R: the accuracy on task j after task i; None for a task whose classes are not known yet."""
    torch.manual_seed(seed)
    outputs = max(task.outputs[-1] for task in tasks) + 1
    learner = Learner(tasks, setting, method, schedule, seed, outputs)
    return [learner.accuracies(place) for place in learner.places()]


class Learner:
    """One network on its way through the tasks."""

    def __init__(
        self,
        tasks: list[Task],
        setting: Setting,
        method: Method,
        schedule: Schedule,
        seed: int,
        outputs: int,
    ) -> None:
        self.tasks, self.setting, self.method = tasks, setting, method
        self.schedule, self.seed = schedule, seed
        self.network = Network(tasks[0].train.x.shape[1], schedule.hidden, outputs)
        self.start = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.parameters = dict(self.network.named_parameters())
        self.protection: Protection | None = None
        self.buffer = Buffer(max(method.replayed, 1), seed, method.policy)
        self.step = 0

    def places(self) -> Iterator[int]:
        """Learn one task after another; the place of each when it is done."""
        for place, task in enumerate(self.tasks):
            if self.method.dumb:
                self._remember(place)
                self._learn_buffer(place)
            else:
                self._learn(place)
                if self.method.estimator is not None:
                    self._protect(task)
                if self.method.replayed:
                    self._remember(place)
            yield place

    def accuracies(self, learned: int) -> list[float | None]:
        """On every task, after learning the one at `learned`."""
        self.network.eval()
        return [self._accuracy(place, learned) for place in range(len(self.tasks))]

    @torch.no_grad()
    def _accuracy(self, place: int, learned: int) -> float | None:
        task = self.tasks[place]
        outputs = task.outputs
        if self.setting == "class":
            if place > learned:
                return None
            outputs = self.tasks[learned].outputs
        self.network.active = torch.tensor(outputs)
        found = self.network.active[self.network(task.test.x).argmax(1)]
        return float((found == task.test.y).double().mean())

    def _learn(self, place: int) -> None:
        schedule, method = self.schedule, self.method
        optimizer = torch.optim.Adam(self.network.parameters(), lr=schedule.rate)
        places = range(place + 1) if method.joint else range(place, place + 1)
        x = torch.cat([self.tasks[p].train.x for p in places])
        y = torch.cat([self.tasks[p].train.y for p in places])
        home = torch.cat([torch.full((len(self.tasks[p].train.y),), p) for p in places])
        closed = self._closed(place)
        generator = torch.Generator().manual_seed(1000 * self.seed + place)
        replay = self.buffer.rows() if method.replayed else ()
        for _ in range(schedule.steps * (len(places) if method.joint else 1)):
            mixed = mix(replay, schedule.batch, method.ratio, step=self.step, seed=self.seed)
            rows = torch.randint(len(y), (mixed.fresh,), generator=generator)
            inputs, labels, homes = x[rows], y[rows], home[rows]
            if mixed.replayed:
                old = self._rows(mixed.replayed)
                inputs, labels, homes = (
                    torch.cat(pair) for pair in zip((inputs, labels, homes), old, strict=True)
                )
            optimizer.zero_grad()
            logits = self.network.layers(inputs) + closed[homes]
            nn.functional.cross_entropy(logits, labels).backward()
            if self.protection is not None:
                add_penalty_gradient(self.parameters, self.protection, method.strength)
            optimizer.step()
            self.step += 1

    def _closed(self, learned: int) -> Tensor:
        """(tasks, outputs): 0 where an output competes for a task's rows, else far below."""
        closed = torch.full((len(self.tasks), self.parameters["layers.4.bias"].numel()), -1e4)
        for place in range(learned + 1):
            own = self.tasks[place if self.setting == "task" else learned].outputs
            closed[place, list(own)] = 0.0
        return closed

    def _protect(self, task: Task) -> None:
        """The Fisher of the task just learned, on some of its rows."""
        generator = torch.Generator().manual_seed(self.seed)
        some = torch.randperm(len(task.train.y), generator=generator)[: self.schedule.fisher_rows]
        outputs = torch.tensor(task.outputs)
        self.network.active = outputs
        labels = torch.searchsorted(outputs, task.train.y[some])
        found = fisher.estimate(
            self.network,
            [
                fisher.Batch({"input": x}, y)
                for x, y in zip(task.train.x[some].split(250), labels.split(250), strict=True)
            ],
            estimator=self.method.estimator,
            seed=self.seed,
        )
        anchor = {name: value.detach().clone() for name, value in self.parameters.items()}
        new = Protection({name: found.diagonal[name] for name in anchor}, anchor)
        if self.protection is None:
            self.protection = new
        elif self.method.gamma is not None:
            self.protection = decay_protection(self.protection, new, self.method.gamma)
        else:
            self.protection = add_protections(self.protection, new)

    def _remember(self, place: int) -> None:
        for row, label in enumerate(self.tasks[place].train.y.tolist()):
            # A row's class counts within its task: domains share their labels.
            name = f"{place}:{label}"
            content = {"text": f"{place} {row}", "label": name}
            self.buffer.add(make_row("labelled", content, ""), name, str(place), self.step)

    def _rows(self, kept: tuple[Kept, ...]) -> tuple[Tensor, Tensor, Tensor]:
        places = [tuple(map(int, one.row.content["text"].split())) for one in kept]
        x = torch.stack([self.tasks[place].train.x[row] for place, row in places])
        y = torch.stack([self.tasks[place].train.y[row] for place, row in places])
        return x, y, torch.tensor([place for place, _ in places])

    def _learn_buffer(self, place: int, epochs: int = 63) -> None:
        """GDumb: from the first weights, the buffer alone, six cycles of its schedule."""
        self.network.load_state_dict(self.start)
        kept = self.buffer.rows()
        ids = [one.row.id for one in kept]
        optimizer = torch.optim.SGD(self.network.parameters(), momentum=0.9, weight_decay=1e-6)
        closed = self._closed(place)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = learning_rate(epoch)
            for some in batches(kept, ids, 16, self.seed, epoch):
                x, y, homes = self._rows(tuple(some))
                optimizer.zero_grad()
                logits = self.network.layers(x) + closed[homes]
                nn.functional.cross_entropy(logits, y).backward()
                optimizer.step()
