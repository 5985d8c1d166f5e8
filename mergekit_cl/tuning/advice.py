"""What goes wrong with a config in practice, said before it does: a sentence each, with reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mergekit_cl.tuning.footprint import protects
from mergekit_cl.tuning.schema import Config

HIGH_RANK = 16
OFTEN = 20
CUT = 0.1
FAR_OFF = 2.0


@dataclass(frozen=True)
class Facts:
    """What rows and files say of a config.

    steps: of each task. validation: rows of each task, and of each suite, by name. classes: labels
    of each task of a classifier. cut, rows: how many rows to learn are truncated, of how many;
    dropped: how many more are left out, having no token to learn.
    calibrations: measured over predicted loss of each sidecar, None where it has none. largest:
    the greatest entry of any sidecar. stored: dtypes of the model's file. goes_on: whether the run
    comes after another one's tasks. protected: whether that one kept their Fisher.
    """

    steps: tuple[int, ...]
    rows: int
    cut: int
    validation: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[frozenset[str], ...] = ()
    calibrations: tuple[float | None, ...] = ()
    largest: float = 0.0
    stored: frozenset[str] = frozenset()
    goes_on: bool = False
    protected: bool = False
    dropped: int = 0


def advice(config: Config, facts: Facts) -> list[str]:
    """Warnings, the gravest first."""
    return [
        *_forgetting(config, facts),
        *_ewc(config, facts),
        *_replay(config, facts),
        *_gate(config, facts),
        *_rest(config, facts),
    ]


def notes(config: Config, facts: Facts) -> list[str]:
    """What is worth knowing and no warning: how far the diagonal was off where that is known."""
    ewc = config.ewc
    if ewc is None or not protects(config, goes_on=facts.goes_on):
        return []
    found = [
        f"ewc.sidecars.{number} is calibrated: along its own fine-tune the loss rose "
        f"{calibration:.3g} times as much as its diagonal predicts"
        for number, calibration in enumerate(facts.calibrations)
        if calibration is not None and calibration <= FAR_OFF
    ]
    if len(config.task) > 1 or facts.goes_on:
        found.append(
            "the Fisher that a run takes of its own tasks is not calibrated: what its diagonal "
            "misses is not known in nats"
        )
    return found


def _forgetting(config: Config, facts: Facts) -> Iterator[str]:
    classes = [one for one in facts.classes if one]
    apart = len(classes) > 1 and not frozenset.intersection(*classes)
    if apart and config.replay is None:
        yield (
            "the tasks have different classes and nothing is replayed: EWC hardly helps there, a "
            "model that never sees the old classes stops naming them; add [replay]"
        )
    held = (config.ewc, config.replay, config.gate)
    if (facts.goes_on or len(config.task) > 1) and not apart and not any(held):
        yield "nothing holds forgetting back: add [ewc], [replay] or [gate]"
    if lacking := [task.name for task in config.task if not facts.validation.get(task.name)]:
        yield (
            f"no held-out rows for {', '.join(lacking)}: what is forgotten of it is not measured; "
            "set validation_share or validation"
        )


def _ewc(config: Config, facts: Facts) -> Iterator[str]:
    ewc = config.ewc
    if ewc is None:
        return
    if facts.goes_on and not facts.protected:
        yield (
            "the run before had no [ewc] and kept no Fisher of its tasks, so they are not "
            "protected; train from its model with ewc.sidecars and ewc.anchors, not --continue"
        )
    elif not protects(config, goes_on=facts.goes_on):
        yield (
            "[ewc] protects nothing in this run: it has one task and no sidecar of an earlier one; "
            "give ewc.sidecars and ewc.anchors, or --continue an earlier run"
        )
        return
    if ewc.strength != "auto":
        yield (
            f"ewc.lambda = {ewc.strength:g} is a guess until it is tuned: what it does depends on "
            'model, data and Fisher; ewc.lambda = "auto" tries several on earlier tasks'
        )
    if config.optimizer.name == "sgd" and ewc.update == "coupled" and ewc.strength != "auto":
        reach = config.optimizer.learning_rate * ewc.strength * facts.largest
        if reach > 2:
            yield (
                f"EWC's explicit step diverges: learning rate x lambda x the largest Fisher entry "
                f'is {reach:.3g}, above 2; ewc.update = "proximal" cannot'
            )
    for number, calibration in enumerate(facts.calibrations):
        if calibration is None:
            yield (
                f"ewc.sidecars.{number} is not calibrated: a diagonal misses interactions of "
                "weights, and by how much is not known here; clmerge fisher --base measures it"
            )
        elif calibration > FAR_OFF:
            yield (
                f"the diagonal of ewc.sidecars.{number} misses interactions of weights: along its "
                f"own fine-tune the loss rose {calibration:.3g} times as much as it predicts"
            )


def _replay(config: Config, facts: Facts) -> Iterator[str]:
    replay = config.replay
    if replay is None:
        return
    later = sum(facts.steps[0 if replay.buffer or facts.goes_on else 1 :])
    often = later * config.batch.rows * replay.ratio / replay.rows
    if often > OFTEN:
        yield (
            f"each kept row is replayed about {often:.0f} times, which learns it by heart: raise "
            "replay.rows, or lower replay.ratio"
        )
    if replay.policy == "reservoir" and any(len(one) > 1 for one in facts.classes):
        yield (
            "a reservoir keeps classes as they come, so rare ones drift out of the buffer: "
            'replay.policy = "balanced" keeps as many of each; the log shows the balance'
        )


def _gate(config: Config, facts: Facts) -> Iterator[str]:
    gate = config.gate
    if gate is None:
        return
    few = {name: n for name, n in facts.validation.items() if n < gate.min_rows}
    if few:
        shown = ", ".join(f"{name} has {count}" for name, count in few.items())
        yield (
            f"fewer than {gate.min_rows} held-out rows decide nothing: {shown}; the gate will say "
            "inconclusive"
        )
    if not facts.validation:
        yield "the gate has no held-out rows at all: give gate.suites or validation rows"


def _rest(config: Config, facts: Facts) -> Iterator[str]:
    steps = sum(facts.steps)
    if config.lora is not None and config.lora.rank > HIGH_RANK:
        yield (
            f"lora.rank = {config.lora.rank}: above {HIGH_RANK} adapters forget more when they are "
            "trained again and again"
        )
    ema = config.ema
    if ema is not None and ema.unit == "steps" and ema.half_life > steps:
        yield (
            f"ema.half_life = {ema.half_life:g} steps is longer than the run's {steps}: the "
            "average keeps much of where it began; 70 steps are a decay of .99 (for rapid change), "
            "700 of .999 (slow)"
        )
    drift = config.drift
    if drift is not None and drift.state is None and drift.calibration >= steps:
        yield (
            f"drift.calibration = {drift.calibration} takes all of the run's {steps} steps, so "
            "nothing is watched: thresholds depend on the loss's scale, which is learned from "
            "them; give drift.state of an earlier run"
        )
    elif (
        drift is not None
        and drift.state is None
        and drift.mean_time_between_false_alarms > drift.calibration
    ):
        yield (
            f"drift.arl = {drift.mean_time_between_false_alarms} asks for more than "
            f"drift.calibration = {drift.calibration} steps can tell: false alarms may come as "
            f"often as every {drift.calibration} steps; calibrate on as many as there "
            "shall be between two"
        )
    if facts.rows and facts.cut / facts.rows > CUT:
        yield (
            f"{facts.cut} of {facts.rows} rows are cut at {config.batch.max_length} tokens "
            "(batch.max_length): their ends are never learned"
        )
    if facts.dropped:
        yield (
            f"{facts.dropped} of {facts.rows + facts.dropped} rows are left out: nothing to learn "
            f"in their first {config.batch.max_length} tokens (batch.max_length), which the prompt "
            "may fill"
        )
    if config.lora is None and facts.stored & {"BF16", "F16"}:
        yield (
            "the model's file has 16 bits a weight: training keeps float32, but small updates are "
            "lost when it is written; clmerge diff tells how much survived"
        )
