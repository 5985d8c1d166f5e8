"""What `clmerge train --dry-run` finds out, without writing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.decide.foresight import CHANGE, SPREAD, foresee
from mergekit_cl.decide.spending import spend
from mergekit_cl.memory import available_bytes
from mergekit_cl.report.amounts import size
from mergekit_cl.sidecar import open_sidecar
from mergekit_cl.training.architecture import Task as Kind
from mergekit_cl.training.model import architecture_of
from mergekit_cl.training.rows import Row
from mergekit_cl.training.tokenizer import load_tokenizer
from mergekit_cl.tuning.advice import Facts, advice, notes
from mergekit_cl.tuning.continuing import check_continued
from mergekit_cl.tuning.counting import count_weights
from mergekit_cl.tuning.earlier import judged_before
from mergekit_cl.tuning.footprint import Footprint, footprint, snapshots
from mergekit_cl.tuning.lengths import Length, lengths_of
from mergekit_cl.tuning.preparing import gate_suites
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config, Gate
from mergekit_cl.tuning.spread import measure_spread
from mergekit_cl.tuning.state import protected_tasks
from mergekit_cl.tuning.strength import values_to_try
from mergekit_cl.tuning.taskrows import Reader, TaskRows, read_tasks

STATES = 3
"""On the disk at once: the current one, the one a rejection goes back to, the one being written."""


def plan_training(
    config: Config, tell: Callable[[str], None], earlier: Path | None = None
) -> dict[str, Any]:
    """The plan as one JSON document (docs/commands.md, "JSON on stdout").

    Reads all rows and the model's headers; with a gate the model's loss is measured on a few rows,
    where there is memory for it. earlier: the run whose tasks these come after. Refuses what the
    run would.
    """
    if earlier is not None:
        check_continued(RunFolder(earlier), Path(config.output), config)
    before = {} if earlier is None else judged_before(RunFolder(earlier))
    kept = earlier is not None and protected_tasks(RunFolder(earlier).state) > 0
    others = {**before, **gate_suites(config)}
    with open_checkpoint(config.model) as checkpoint:
        kind = architecture_of(checkpoint).task
        reader = Reader(
            load_tokenizer(checkpoint.root),
            kind,
            checkpoint.config or {},
            config.batch.max_length,
            config.batch.completion_only,
        )
        held_out = {row.id for rows in others.values() for row in rows}
        tasks = read_tasks(config, reader, held_out)
        counts = count_weights(config, checkpoint)
        held = footprint(config, counts, goes_on=kept)
        lengths = lengths_of(config, tasks, None if earlier is None else RunFolder(earlier))
        steps = tuple(length.steps for length in lengths)
        judged = {task.name: tuple(task.validation.values()) for task in tasks if task.validation}
        measured = {name: len(rows) for name, rows in (before | judged).items()}
        evaluated = measured | {name: len(rows) for name, rows in others.items()}
        gate = None
        if config.gate is not None:
            sample = next(iter((judged | others).values()), ())
            fits = held.weights < (available_bytes() or held.weights + 1)
            spread = _spread(config, checkpoint, sample, tell) if fits else None
            gate = _gate(config.gate, evaluated, steps, spread)
        kept_averages = snapshots(config, counts.trained, sum(steps))
        facts = facts_of(config, checkpoint, kind, tasks, steps, evaluated)
        facts = replace(facts, goes_on=earlier is not None, protected=kept)
    return {
        "command": "train",
        "model": config.model,
        "output": config.output,
        "parameters": {"all": counts.whole, "trained": counts.trained},
        "memory_bytes": held.to_json(),
        "disk_bytes": _disk(config, checkpoint, held) + kept_averages.bytes,
        "snapshots": asdict(kept_averages),
        "tasks": [_task(task, length) for task, length in zip(tasks, lengths, strict=True)],
        "steps": sum(steps),
        "trials": len(values_to_try(config.ewc)),
        "buffer_rows": _buffer(config, tasks),
        "evaluation": {"rows": measured, "times": len(tasks) + 1},
        "gate": gate,
        "notes": notes(config, facts),
        "warnings": [*advice(config, facts), *_lacking(held)],
    }


def _task(task: TaskRows, length: Length) -> dict[str, Any]:
    rows = task.encoded.values()
    return {
        "name": task.name,
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "truncated": task.truncated,
        "validation_rows": len(task.validation),
        "steps": length.steps,
        "epochs": round(length.epochs, 3),
    }


def _spread(
    config: Config, checkpoint: Checkpoint, sample: Sequence[Row], tell: Callable[[str], None]
) -> float | None:
    if len(sample) < 2:
        return None
    tell("measuring: the model's loss on a few held-out rows; nothing is written")
    return measure_spread(config, checkpoint, sample)


def _gate(
    gate: Gate, evaluated: Mapping[str, int], steps: tuple[int, ...], spread: float | None
) -> dict[str, Any]:
    """What the gate can be expected to decide, at its first look and at its last."""
    looks = sum(max(1, -(-count // gate.every)) if gate.every else 1 for count in steps)
    used = SPREAD if spread is None else spread
    found = []
    for name, rows in evaluated.items():
        first, last = (
            foresee(
                rows,
                used,
                margin=gate.margin,
                alpha=spend(gate.alpha, look),
                min_rows=gate.min_rows,
            )
            for look in (1, looks)
        )
        found.append(
            {
                "suite": name,
                "rows": rows,
                "power": first.power,
                "rows_needed": first.rows_needed,
                "power_of_last_look": last.power,
            }
        )
    return {
        "margin": gate.margin,
        "alpha": gate.alpha,
        "looks": looks,
        "spread": used,
        "spread_measured": spread is not None,
        "assumed_change": CHANGE,
        "suites": found,
    }


def _buffer(config: Config, tasks: tuple[TaskRows, ...]) -> int:
    if config.replay is None:
        return 0
    return min(config.replay.rows, sum(len(task.train) for task in tasks))


def _disk(config: Config, checkpoint: Checkpoint, held: Footprint) -> int:
    """What the run directory takes at most: states, the model, its sidecar in bfloat16."""
    state = held.gradients + held.optimizer + held.average  # as many weights as have a gradient
    given = held.gradients if config.lora is not None else checkpoint.nbytes
    sidecar = checkpoint.nbytes if config.fisher else 0
    return STATES * state + held.fisher + held.anchor + given + sidecar


def facts_of(
    config: Config,
    checkpoint: Checkpoint,
    kind: Kind,
    tasks: tuple[TaskRows, ...],
    steps: tuple[int, ...],
    evaluated: Mapping[str, int],
) -> Facts:
    """What rows and files say of a config; evaluated: rows by suite."""
    metadata = [open_sidecar(path).metadata for path in (config.ewc.sidecars if config.ewc else ())]
    classes: tuple[frozenset[str], ...] = ()
    if kind == "classifier":
        classes = tuple(
            frozenset(str(row.labels[0]) for row in task.encoded.values()) for task in tasks
        )
    return Facts(
        steps=steps,
        rows=sum(len(task.encoded) for task in tasks),
        cut=sum(task.truncated for task in tasks),
        dropped=sum(task.dropped for task in tasks),
        validation=evaluated,
        classes=classes,
        calibrations=tuple(one.get("calibration") for one in metadata),
        largest=max(
            (entry.get("max", 0.0) for one in metadata for entry in one["tensors"].values()),
            default=0.0,
        ),
        stored=frozenset(info.dtype for info in checkpoint.tensors.values() if info.is_float),
    )


def _lacking(held: Footprint) -> list[str]:
    free = available_bytes()
    if free is None or held.total <= free:
        return []
    return [f"{size(held.total)} would be held besides activations, and {size(free)} is free"]
