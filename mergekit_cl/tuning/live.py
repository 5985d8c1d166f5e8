"""Everything that changes while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_cl.continual.mixing import Realised
from mergekit_cl.training.loss import RowLosses
from mergekit_cl.tuning.position import Position
from mergekit_cl.tuning.watching import Stream

if TYPE_CHECKING:
    import torch

    from mergekit_cl.continual.average import WeightAverage
    from mergekit_cl.continual.buffer import Buffer
    from mergekit_cl.continual.ewc import Protection
    from mergekit_cl.continual.posthoc import PowerAverage
    from mergekit_cl.tuning.model import Tuned

Suites = dict[str, RowLosses]


@dataclass(frozen=True)
class Measured:
    """All held-out rows with one model. after: the task it had just learned; None: none yet."""

    after: str | None
    losses: Suites


@dataclass
class Record:
    """Losses by row. reference: of the model before the task at work, anchor: of a release.

    revision: grows with every change.
    """

    measured: list[Measured] = field(default_factory=list)
    reference: Suites = field(default_factory=dict)
    anchor: Suites = field(default_factory=dict)
    revision: int = 0

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """From `to_json`."""
        measured = [Measured(one["after"], _suites(one["losses"])) for one in values["measured"]]
        reference, anchor = _suites(values["reference"]), _suites(values["anchor"])
        return cls(measured, reference, anchor, values["revision"])


@dataclass
class History:
    """What was seen and decided, which no rejection takes back.

    looks: {suite: times the gate looked at it}. verdicts: what it decided, in order. tasks: what
    became of each. alarms: of the drift detector.
    """

    looks: dict[str, int] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Live:
    """The parts of a run that a state on the disk holds.

    tracks: what averages of other half-lives are made of afterwards. protection: of earlier tasks,
    by the names that parameters have without an adapter; protected: how often it changed; fishers:
    (estimator, unit) of each kind of Fisher in it. realised: what was replayed in the task at work.
    stream: the drift detector. history, record, stream: survive a rejection.
    """

    tuned: Tuned
    optimizer: torch.optim.Optimizer
    position: Position = field(default_factory=Position)
    average: WeightAverage | None = None
    tracks: tuple[PowerAverage, ...] = ()
    buffer: Buffer | None = None
    protection: Protection | None = None
    protected: int = 0
    fishers: tuple[tuple[str, str], ...] = ()
    realised: Realised = field(default_factory=Realised)
    stream: Stream | None = None
    history: History = field(default_factory=History)
    record: Record = field(default_factory=Record)


def _suites(values: Mapping[str, Any]) -> Suites:
    return {name: _losses(one) for name, one in values.items()}


def _losses(values: Mapping[str, Any]) -> RowLosses:
    correct = values["correct"]
    return RowLosses(
        tuple(values["ids"]),
        tuple(values["nats"]),
        tuple(values["tokens"]),
        None if correct is None else tuple(correct),
    )
