"""Everything that changes while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_cl.continual.mixing import Realised
from mergekit_cl.training.loss import RowLosses
from mergekit_cl.tuning.position import Position

if TYPE_CHECKING:
    import torch

    from mergekit_cl.continual.average import WeightAverage
    from mergekit_cl.continual.buffer import Buffer
    from mergekit_cl.continual.ewc import Protection
    from mergekit_cl.tuning.model import Tuned

Suites = Mapping[str, RowLosses]


@dataclass
class History:
    """What is known of the run, which no rejection takes back.

    measured: a row of the task matrix for each time that all tasks were evaluated. verdicts: of the
    gate, by look. looks: {suite: times it was looked at}. reference: {suite: losses of the model
    before the task at work}. watch: the drift detector's state. tasks: what became of each.
    """

    measured: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)
    reference: dict[str, RowLosses] = field(default_factory=dict)
    anchor: dict[str, RowLosses] = field(default_factory=dict)
    watch: dict[str, Any] | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """From `to_json`."""
        found = cls(**values)
        found.reference = {name: _losses(one) for name, one in values["reference"].items()}
        found.anchor = {name: _losses(one) for name, one in values["anchor"].items()}
        return found


@dataclass
class Live:
    """The parts of a run that a state on the disk holds.

    protection: of earlier tasks, by the names of file tensors' parameters; protected: how many
    tasks are in it. realised: what was replayed in the task at work.
    """

    tuned: Tuned
    optimizer: torch.optim.Optimizer
    position: Position = field(default_factory=Position)
    average: WeightAverage | None = None
    buffer: Buffer | None = None
    protection: Protection | None = None
    protected: int = 0
    realised: Realised = field(default_factory=Realised)
    history: History = field(default_factory=History)


def _losses(values: Mapping[str, Any]) -> RowLosses:
    correct = values["correct"]
    return RowLosses(
        tuple(values["ids"]),
        tuple(values["nats"]),
        tuple(values["tokens"]),
        None if correct is None else tuple(correct),
    )
