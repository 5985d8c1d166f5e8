"""What a run holds in memory and leaves on the disk: sums over parameters, in bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mergekit_cl.tuning.schema import Config

SINGLE = 4
"""Bytes of a float32: everything that training adds to is kept in it."""

TRACKS = 2
"""Averages in a snapshot (continual/posthoc.py)."""


@dataclass(frozen=True)
class Counts:
    """Numbers of weights. whole: of the model, tied ones once. trained: that a step changes.

    protected: that EWC's Fisher covers: those of the model that training can move, through an
    adapter as well.
    """

    whole: int
    trained: int
    protected: int


@dataclass(frozen=True)
class Footprint:
    """Bytes held at once, activations not counted."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    fisher: int
    anchor: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    def to_json(self) -> dict[str, int]:
        """As values for JSON."""
        return {**asdict(self), "total": self.total}


def footprint(config: Config, counts: Counts, *, goes_on: bool = False) -> Footprint:
    """What a run of this config holds.

    An adapter's own weights come on top of the model's. The first task has no protection, so a
    single task without sidecars has neither Fisher nor anchor. One pair stands for all earlier
    tasks, however many there are. goes_on: the run comes after another one's tasks.
    """
    adapter = counts.trained if config.lora is not None else 0
    moments = 2 if config.optimizer.name == "adamw" else int(config.optimizer.momentum > 0)
    held = counts.protected if protects(config, goes_on=goes_on) else 0
    return Footprint(
        weights=SINGLE * (counts.whole + adapter),
        gradients=SINGLE * counts.trained,
        optimizer=SINGLE * counts.trained * moments,
        average=SINGLE * counts.trained * averages(config),
        fisher=SINGLE * held,
        anchor=SINGLE * held,
    )


def averages(config: Config) -> int:
    """How many averages of what is trained are kept: the one, and two that others are made of."""
    if config.ema is None:
        return 0
    return 1 + (TRACKS if config.ema.snapshot_every else 0)


@dataclass(frozen=True)
class Snapshots:
    """What a run leaves so that other averages can be made: files, and bytes of all of them."""

    count: int
    bytes: int


def snapshots(config: Config, trained: int, steps: int) -> Snapshots:
    """Of `trained` weights over all steps of a run: one each so many steps, one at its end."""
    every = 0 if config.ema is None else config.ema.snapshot_every
    count = -(-steps // every) if every else 0
    return Snapshots(count, count * TRACKS * SINGLE * trained)


def protects(config: Config, *, goes_on: bool = False) -> bool:
    """Whether any task of a run is held back by EWC."""
    if config.ewc is None:
        return False
    return goes_on or len(config.task) > 1 or bool(config.ewc.sidecars)
