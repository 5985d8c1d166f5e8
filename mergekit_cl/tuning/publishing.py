"""The end of a run: what it gives away, moved into its place in one step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.drifting.rows import COLUMN
from mergekit_cl.drifting.statefile import State
from mergekit_cl.manifest import FORMAT, describe_input, versions, write_json
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.whole import published_whole
from mergekit_cl.training.bufferfile import save_buffer
from mergekit_cl.tuning.evaluating import as_published
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.session import Session
from mergekit_cl.tuning.sidecars import take_rounded, write_sidecar
from mergekit_cl.tuning.writing import stored_tensors, write_adapter, write_model
from mergekit_cl.tuning.written import describe_written


def publish(session: Session, live: Live) -> Path:
    """Write the model or adapter with its `clmerge/`; the one there before stays until then."""
    target = session.folder.adapter if live.tuned.adapted else session.folder.model
    with as_published(session.config, live), _staging(session, target) as out:
        side = out / "clmerge"
        _write(session, live, out, side)
        if session.config.fisher:
            _add_fisher(session, live, out, side)
        if session.engine.leads:
            write_json(side / "manifest.json", _manifest(session, out, target))
    session.engine.wait()
    return target


def _write(session: Session, live: Live, out: Path, side: Path) -> None:
    adapted, leads = live.tuned.adapted, session.engine.leads
    tensors = {} if adapted else stored_tensors(live.tuned, session.checkpoint)
    if leads:
        side.mkdir(parents=True, exist_ok=True)
        if adapted:
            write_adapter(out, live.tuned, session.checkpoint)
        else:
            write_model(out, tensors, session.checkpoint)
        if live.buffer is not None:
            save_buffer(live.buffer, side)
        if live.stream is not None and live.stream.watch is not None:
            state = State(live.stream.watch, COLUMN)
            write_json(side / "drift.json", state.to_json())
        if live.history.verdicts:
            write_json(side / "verdict.json", live.history.verdicts[-1])
    session.engine.wait()
    if not adapted:
        take_rounded(live, tensors)


def _add_fisher(session: Session, live: Live, out: Path, side: Path) -> None:
    if live.tuned.adapted:
        write_sidecar(session, live, side, session.checkpoint)
        return
    with open_checkpoint(out if session.engine.leads else session.checkpoint.path) as written:
        write_sidecar(session, live, side, written)


@contextmanager
def _staging(session: Session, target: Path) -> Iterator[Path]:
    """A folder that takes the target's place at the end; of other processes, only its name."""
    staging = Staging(target)
    if not session.engine.leads:
        yield staging.out
        return
    if staging.complete() is not None:
        staging.discard()
    staging.open({"command": "train", "run": str(session.folder.root)}, restart=True)
    with published_whole(staging):
        yield staging.out


def _manifest(session: Session, out: Path, target: Path) -> dict[str, Any]:
    """How this model was made."""
    before = checkpoint_digests(session.checkpoint)
    return {
        "format": FORMAT,
        "command": "train",
        "options": session.config.model_dump(mode="json", by_alias=True),
        "inputs": [describe_input(session.checkpoint, "base", before)],
        **describe_written(out, target, before),
        "versions": versions(),
        "seconds": round(time.perf_counter() - session.began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
