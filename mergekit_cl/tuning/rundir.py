"""The folder of a run: whether it may be written to, who is in it, what lies where."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.errors import OutputError
from mergekit_cl.output import lock
from mergekit_cl.output.durable import make_folders, sync, write_durably

FORMAT = "clmerge.run/1"


@dataclass(frozen=True)
class RunFolder:
    """Names of what a run writes."""

    root: Path

    @property
    def record(self) -> Path:
        """What says that this folder is a run's, and how far it came."""
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        """The config as it was understood."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a step; equal for equal runs."""
        return self.root / "metrics.jsonl"

    @property
    def times(self) -> Path:
        """Seconds; they differ."""
        return self.root / "times.jsonl"

    @property
    def matrix(self) -> Path:
        """The task matrix, and what follows from it."""
        return self.root / "tasks.json"

    @property
    def state(self) -> Path:
        """What --resume, --continue and the gate go back to."""
        return self.root / "state"

    @property
    def snapshots(self) -> Path:
        """What averages of other half-lives are made of."""
        return self.root / "snapshots"

    @property
    def verdicts(self) -> Path:
        """What the gate decided."""
        return self.root / "verdicts"

    @property
    def validation(self) -> Path:
        """The rows that tasks are judged by, so that later runs can go on judging."""
        return self.root / "validation"

    @property
    def model(self) -> Path:
        """A whole fine-tune's checkpoint."""
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        """Or a LoRA adapter, as PEFT saves it."""
        return self.root / "adapter"

    @property
    def aside(self) -> Path:
        """Where an older run waits until the one that replaces it is finished."""
        return self.root.with_name(f".{self.root.name}.replaced")

    def read_record(self) -> dict[str, Any] | None:
        """The record; None where there is none of this version."""
        try:
            found = json.loads(self.record.read_bytes())
        except (OSError, ValueError):
            return None
        ours = isinstance(found, dict) and found.get("format") == FORMAT
        return found if ours else None

    def write_record(self, values: dict[str, Any]) -> None:
        """Replace the record in one step."""
        text = json.dumps({"format": FORMAT, **values}, indent=2, sort_keys=True)
        write_durably(self.record, f"{text}\n".encode())

    def lock(self) -> int:
        """Keep other processes out until the returned file is closed; raises OutputError."""
        held = lock.lock_folder(self.root)
        if held is None:
            raise OutputError(
                "another process is training here",
                detail=str(self.root),
                hint="wait for it to end, or choose another output",
            )
        return held


def begin_run(folder: RunFolder, config: str, *, force: bool) -> int:
    """Make the folder of a new run; gives its lock.

    force: move away an older run, which goes when the new one is finished. Raises OutputError where
    something is there that may not be replaced.
    """
    check_free(folder, force=force)
    try:
        if folder.read_record() is not None:
            shutil.rmtree(folder.aside, ignore_errors=True)
            folder.root.rename(folder.aside)
            sync(folder.root.parent)
        make_folders(folder.root)
        held = folder.lock()
        folder.write_record({"state": "running"})
        write_durably(folder.config, config.encode())
        for place in (folder.state, folder.verdicts, folder.validation):
            place.mkdir(exist_ok=True)
        sync(folder.root)
    except OSError as error:
        raise OutputError(
            "the run's folder cannot be made",
            detail=f"{folder.root}: {error.strerror or error}",
            hint="choose another output",
        ) from error
    return held


def check_free(folder: RunFolder, *, force: bool) -> None:
    """Raise OutputError where a new run would overwrite what is there."""
    root = folder.root
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        return
    record = folder.read_record() if root.is_dir() else None
    if record is None:
        raise OutputError(
            "the output exists and is no run of clmerge, so it is not replaced",
            detail=str(root),
            hint="move it away, or choose another output",
        )
    if force:
        return
    if record["state"] == "finished":
        raise OutputError(
            "a finished run is there already",
            detail=str(root),
            hint=f"--continue {root} to add these tasks to it, --force to begin anew in its place, "
            "or another output",
        )
    raise OutputError(
        "an unfinished run is there already",
        detail=str(root),
        hint=f"--resume {root} to go on with it, or --force to begin anew in its place",
    )


def end_run(folder: RunFolder, record: dict[str, Any]) -> None:
    """Write that the run is finished, and remove what it replaced."""
    folder.write_record(record)
    with suppress(OSError):
        shutil.rmtree(folder.aside)
