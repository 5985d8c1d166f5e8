"""The end of a run: what it gives away, moved into its place in one step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import ClmergeError
from mergekit_cl.manifest import FORMAT, describe_input, versions, write_json
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.output.staging import Staging
from mergekit_cl.training.bufferfile import save_buffer
from mergekit_cl.tuning.evaluating import as_published
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.session import Session
from mergekit_cl.tuning.writing import stored_tensors, write_adapter, write_model


def publish(session: Session, live: Live) -> Path:
    """Write the model or adapter with its `clmerge/`; the one there before stays until then."""
    adapted = live.tuned.adapted
    target = session.folder.adapter if adapted else session.folder.model
    with as_published(session.config, live):
        tensors = {} if adapted else stored_tensors(live.tuned, session.checkpoint)
        if session.engine.leads:
            staging = Staging(target)
            if staging.complete() is not None:
                staging.discard()
            staging.open({"command": "train", "run": str(session.folder.root)}, restart=True)
            try:
                if adapted:
                    write_adapter(staging.out, live.tuned, session.checkpoint)
                else:
                    write_model(staging.out, tensors, session.checkpoint)
                side = staging.out / "clmerge"
                side.mkdir(exist_ok=True)
                if live.buffer is not None:
                    save_buffer(live.buffer, side)
                write_json(side / "manifest.json", _manifest(session, staging.out, target))
                staging.publish()
            except ClmergeError:
                staging.discard()
                raise
            finally:
                staging.close()
    session.engine.wait()
    return target


def _manifest(session: Session, out: Path, target: Path) -> dict[str, Any]:
    """How this model was made."""
    opened = out / "adapter_model.safetensors"
    before = checkpoint_digests(session.checkpoint)
    with open_checkpoint(opened if opened.is_file() else out) as written:
        digests = checkpoint_digests(written)
        output = {**describe_input(written, "output", digests), "path": str(target)}
        tensors = {
            name: {
                "digest": digests[name],
                "dtype": info.dtype,
                "shape": list(info.shape),
                "action": "copied" if before.get(name) == digests[name] else "merged",
            }
            for name, info in written.tensors.items()
        }
    return {
        "format": FORMAT,
        "command": "train",
        "options": session.config.model_dump(mode="json", by_alias=True),
        "inputs": [describe_input(session.checkpoint, "base", before)],
        "outputs": [output],
        "tensors": tensors,
        "versions": versions(),
        "seconds": round(time.perf_counter() - session.began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
