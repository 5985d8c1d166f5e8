"""What decides a run besides its config: weights, rows and files, each by a digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.continual.buffertext import MANIFEST, ROWS
from mergekit_cl.digest import bytes_digest
from mergekit_cl.estimating.identity import digest_of
from mergekit_cl.training.rows import Row, data_digest
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.taskrows import TaskRows


def describe_inputs(
    config: Config, base: str, tasks: tuple[TaskRows, ...], suites: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    """Digests of the weights a run begins with, of its tasks' rows and of what the config names.

    base: of the weights. suites: the gate's own. `files` has a value for each key of the config
    that names something: None where it names nothing, or nothing that can be read.
    """
    gate, ewc, replay, drift = config.gate, config.ewc, config.replay, config.drift
    buffer = None if replay is None or replay.buffer is None else Path(replay.buffer)
    state = None if drift is None or drift.state is None else Path(drift.state)
    return {
        "base": base,
        "tasks": {task.name: task.digest for task in tasks},
        "files": {
            "gate.suites": {n: data_digest(row.id for row in rows) for n, rows in suites.items()},
            "gate.anchor": None if gate is None or gate.anchor is None else _weights(gate.anchor),
            "ewc.sidecars": [] if ewc is None else [_weights(path) for path in ewc.sidecars],
            "ewc.anchors": [] if ewc is None else [_weights(path) for path in ewc.anchors],
            "replay.buffer": None if buffer is None else _content(buffer / ROWS, buffer / MANIFEST),
            "drift.state": None if state is None else _content(state),
        },
    }


def _weights(path: str) -> str:
    with open_checkpoint(path) as checkpoint:
        return digest_of(checkpoint)


def _content(*paths: Path) -> str | None:
    """None where a file cannot be read: who needs it says so, in better words."""
    try:
        return bytes_digest(b"\0".join(path.read_bytes() for path in paths))
    except OSError:
        return None
