"""Everything that can be refused before training begins: model, rows, protection, room."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.errors import OptionError
from mergekit_cl.estimating.identity import digest_of
from mergekit_cl.gating.ledger import read_ledger
from mergekit_cl.launched import launched
from mergekit_cl.output.target import check_room
from mergekit_cl.sidecar import open_sidecar
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.model import architecture_of
from mergekit_cl.training.rows import Row
from mergekit_cl.training.tokenizer import load_tokenizer
from mergekit_cl.tuning.earlier import Judged
from mergekit_cl.tuning.footprint import averages, snapshots
from mergekit_cl.tuning.inputs import describe_inputs
from mergekit_cl.tuning.lengths import lengths_of
from mergekit_cl.tuning.model import Tuned, build_base, build_tuned
from mergekit_cl.tuning.protecting import kinds_of, protection_from_sidecars
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.taskrows import CHARACTERS_PER_TOKEN, Reader, TaskRows, read_tasks
from mergekit_cl.tuning.watching import stream_of

if TYPE_CHECKING:
    from mergekit_cl.continual.ewc import Protection
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel

GENERATIONS = 3
"""States on the disk at once, at most: the accepted one, the current one, the one being written."""


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    base: digest of the weights it begins with; inputs: of all it begins with. judged: rows that
    tasks are judged by, of earlier runs first; extra: those of the gate's own suites. protection:
    from sidecars, and fishers: (estimator, unit) of each kind of those.
    """

    tuned: Tuned
    reader: Reader
    tasks: tuple[TaskRows, ...]
    base: str
    inputs: Mapping[str, Any]
    judged: Judged
    extra: Judged
    protection: Protection | None
    fishers: tuple[tuple[str, str], ...]

    @property
    def held_out(self) -> set[str]:
        """Ids of rows that are judged by, and so never learned or replayed."""
        return {row.id for of in (self.judged, self.extra) for rows in of.values() for row in rows}

    def suites(self, of: Judged) -> dict[str, Encoded]:
        """Rows as tokens."""
        return {name: self.reader.encode(rows, name) for name, rows in of.items()}


def prepare(config: Config, checkpoint: Checkpoint, before: Judged) -> Prepared:
    """Build the model and read all rows; raises for everything that is wrong with them.

    before: the rows that tasks of earlier runs are judged by.
    """
    _check_combinations(config)
    check_gate(config)
    if config.drift is not None:
        stream_of(config.drift)  # a state that cannot be read is refused before anything is trained
    built = build_base(checkpoint)
    protection, fishers = _protection(config, built)
    tuned = build_tuned(config, checkpoint, built)
    batch = config.batch
    reader = Reader(
        tuned.tokenizer, built.kind, tuned.config, batch.max_length, batch.completion_only
    )
    extra = gate_suites(config)
    held_out = {row.id for rows in (*before.values(), *extra.values()) for row in rows}
    tasks = read_tasks(config, reader, held_out)
    judged = before | {t.name: tuple(t.validation.values()) for t in tasks if t.validation}
    if config.gate is not None and not judged and not extra:
        raise OptionError(
            "the gate has no rows to judge by",
            detail="no task has validation rows, and gate.suites is empty",
            hint="give validation, validation_share or gate.suites",
        )
    base = digest_of(checkpoint)
    inputs = describe_inputs(config, base, tasks, extra)
    return Prepared(tuned, reader, tasks, base, inputs, judged, extra, protection, fishers)


def check_gate(config: Config) -> None:
    """Raise where the gate's anchor cannot be run, or its ledger not be read."""
    gate = config.gate
    if gate is None:
        return
    if gate.ledger is not None:
        read_ledger(Path(gate.ledger))
    if gate.anchor is not None:
        with open_checkpoint(gate.anchor) as anchor:
            architecture_of(anchor)
            load_tokenizer(anchor.root)


def check_disk(config: Config, prepared: Prepared, checkpoint: Checkpoint, root: Path) -> None:
    """Raise OutputError where states and output would not fit on the disk."""
    trained = sum(parameter.numel() for parameter in prepared.tuned.trained().values())
    needed = 4 * trained * (3 + averages(config)) * GENERATIONS
    steps = sum(length.steps for length in lengths_of(config, prepared.tasks))
    needed += snapshots(config, trained, steps).bytes
    if config.ewc is not None:
        needed += 2 * 4 * prepared.tuned.built.parameters * 2
    written = 4 * trained if prepared.tuned.adapted else checkpoint.nbytes
    check_room(root, needed + (3 if config.fisher else 2) * written)


def _check_combinations(config: Config) -> None:
    world = launched().world
    if config.batch.rows < world * config.batch.accumulate:
        raise OptionError(
            "a batch has fewer rows than parts",
            detail=f"batch.rows {config.batch.rows}, batch.accumulate {config.batch.accumulate}, "
            f"{world} processes",
            hint="each process takes a row of every part, at least",
        )
    if config.shard and config.lora is not None:
        raise OptionError(
            "an adapter is trained by processes that each hold the whole model",
            detail="shard with lora",
            hint="shard = false: an adapter's gradients and moments are small",
        )
    ewc = config.ewc
    if ewc is not None and ewc.update == "proximal" and config.lora is not None:
        raise OptionError(
            "the proximal update moves weights, and an adapter's weights are frozen",
            detail='ewc.update = "proximal" with lora',
            hint='ewc.update = "coupled"',
        )


def _protection(
    config: Config, built: BuiltModel
) -> tuple[Protection | None, tuple[tuple[str, str], ...]]:
    """What sidecars hold back, and of which kinds they are."""
    if config.ewc is None or not config.ewc.sidecars:
        return None, ()
    pairs = zip(config.ewc.sidecars, config.ewc.anchors, strict=True)
    with ExitStack() as stack:
        earlier = []
        for sidecar, anchor in pairs:
            opened = open_sidecar(Path(sidecar))
            stack.enter_context(opened.checkpoint)
            earlier.append((opened, stack.enter_context(open_checkpoint(anchor))))
        settings = config.ewc
        whole = protection_from_sidecars(built, earlier, mode=settings.mode, gamma=settings.gamma)
        return whole, kinds_of(sidecar for sidecar, _ in earlier)


def gate_suites(config: Config) -> Judged:
    """The gate's own suites, each row once."""
    if config.gate is None:
        return {}
    found: dict[str, tuple[Row, ...]] = {}
    for name, paths in config.gate.suites.items():
        rows = read_rows(paths, passage=CHARACTERS_PER_TOKEN * config.batch.max_length)
        found[name] = tuple({row.id: row for row in rows}.values())
    return found
