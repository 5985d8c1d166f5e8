"""A merge whose output lies beyond this disk: made here, then uploaded.

What is made waits in the user's cache folder until all of it has arrived, so that a command that
was interrupted, or whose upload failed, continues where it was when it is given again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_cl.cache import cache_folder
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import ClmergeError, Interrupted, OutputError
from mergekit_cl.merging import (
    MergeOutcome,
    OutputOptions,
    describe_plan,
    make_plan,
    recorded_options,
    run_merge,
)
from mergekit_cl.methods.method import Method
from mergekit_cl.output.upload import RemoteOutput
from mergekit_cl.report.progress import Start
from mergekit_cl.uptodate import is_same_run


def describe_remote_plan(url: str, method: Method, options: OutputOptions) -> dict[str, Any]:
    """What `--dry-run` prints."""
    output = RemoteOutput(url)
    here = replace(options, target=_made_at(output))
    plan = describe_plan(method, make_plan(method, here), here)
    output.close()
    return {**plan, "output": output.shown}


def run_remote_merge(
    url: str, method: Method, options: OutputOptions, progress: Start
) -> MergeOutcome:
    """`run_merge` into a URL; an identical finished output is only confirmed.

    Raises OutputError where the place holds something else, or cannot be written to.
    """
    started = time.perf_counter()
    output = RemoteOutput(url)
    _check_apart(output.shown, [source for _, source in method.sources()])
    made_at = _made_at(output)
    here = replace(options, target=made_at, force=True)
    try:
        done = _done(output, method, here)
        if done is not None:
            spent = time.perf_counter() - started
            return MergeOutcome(output.shown, "up to date", done, None, (), spent, 0)
        output.check_replaceable(force=options.force)
        with _alone(made_at.parent, output.shown):
            outcome = _made(output, method, here, progress)
            if outcome.state != "refused":
                _upload(output, made_at, progress)
            shutil.rmtree(made_at.parent, ignore_errors=True)
    finally:
        output.close()
    state = "refused" if outcome.state == "refused" else "published"
    return replace(outcome, target=output.shown, state=state)


def _made(
    output: RemoteOutput, method: Method, options: OutputOptions, progress: Start
) -> MergeOutcome:
    """The merge itself, with the place claimed; given up where nothing will come of it."""
    output.claim()
    try:
        outcome = run_merge(method, options, progress)
    except Interrupted:
        raise
    except ClmergeError:
        output.give_up()
        raise
    if outcome.state == "refused":
        output.give_up()
    return outcome


def _done(output: RemoteOutput, method: Method, options: OutputOptions) -> Mapping[str, Any] | None:
    found = output.manifest()
    if found is None:
        return None
    recorded = recorded_options(method, options)
    return found if is_same_run(found, method, recorded, output.url) else None


def _upload(output: RemoteOutput, made_at: Path, progress: Start) -> None:
    root = made_at.parent if output.single else made_at
    waits = f"what is made waits in {made_at.parent}; the same command goes on"
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    try:
        output.upload(root, progress("upload", total))
    except (Interrupted, OutputError) as error:
        error.hint = waits
        raise


def _made_at(output: RemoteOutput) -> Path:
    """Where an output is made before it is uploaded: the same place for the same URL."""
    place = cache_folder() / "uploads" / bytes_digest(output.url.encode())[:16]
    return place / (output.name or "merged")


def _check_apart(url: str, inputs: list[Checkpoint]) -> None:
    place = url + "/"
    for checkpoint in inputs:
        source = f"{checkpoint.path}/"
        if checkpoint.here is None and (source.startswith(place) or place.startswith(source)):
            raise OutputError(
                "the output would overwrite an input",
                detail=f"-o {url} and {checkpoint.path}",
                hint="choose an output outside the inputs",
            )


@contextmanager
def _alone(folder: Path, shown: str) -> Iterator[None]:
    """Keep other processes of this machine from making the same output."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix(".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, lock, shown)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # only where it is empty: nothing is left of a bad run
            lock.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, shown: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that ends removes the file: a lock on a removed file protects nothing.
        held = path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino
    except BlockingIOError:
        held = False
    if not held:
        raise OutputError(
            "another process is writing this output",
            detail=shown,
            hint="wait for it to end, or choose another -o",
        )
