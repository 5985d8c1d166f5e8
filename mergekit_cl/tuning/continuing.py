"""Whether a run may build on another, and whether that one is still what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import FormatError, InputError, MismatchError, OptionError
from mergekit_cl.tuning.earlier import read_inputs
from mergekit_cl.tuning.resuming import FREE, differing, stored_config
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.state import pointer


@dataclass(frozen=True)
class Earlier:
    """The run that another one continues; digest: of what it came to."""

    folder: RunFolder
    digest: str


def earlier_run(folder: RunFolder) -> Earlier:
    """A finished run to build on.

    Its digest is of inputs, config and log, which equal runs share. Raises FormatError.
    """
    inputs = {key: value for key, value in read_inputs(folder).items() if key != "continues"}
    config = {key: value for key, value in stored_config(folder).items() if key not in FREE}
    try:
        log = bytes_digest(folder.metrics.read_bytes())
    except OSError as error:
        raise FormatError(
            "the log of an earlier run cannot be read",
            detail=f"{folder.metrics}: {error.strerror}",
        ) from error
    known = json.dumps([inputs, config, log], sort_keys=True)
    return Earlier(folder, bytes_digest(known.encode()))


def is_continued(folder: RunFolder, earlier: RunFolder | None) -> bool:
    """Whether the run in `folder` continues that one, as it is now; None: whether none."""
    known = continued_by(folder)
    if known is None or earlier is None:
        return known is None and earlier is None
    try:
        return earlier_run(earlier).digest == known.digest
    except FormatError:
        return False


def continued_by(folder: RunFolder) -> Earlier | None:
    """The run that the one in `folder` continues, as it was then; None where it continues none."""
    found = read_inputs(folder)
    if found.get("continues") is None:
        return None
    return Earlier(RunFolder(Path(found["continues"])), found["earlier"])


def check_unchanged(earlier: Earlier) -> None:
    """Raise where the run to continue is gone, or another than when it was begun with."""
    folder = earlier.folder
    hint = "put it back as it was, or begin the new tasks anew with --continue"
    if folder.read_record() is None or not pointer(folder.state):
        raise InputError(
            "the run that this one continues is gone, and nothing of it was taken over yet",
            detail=str(folder.state),
            hint=hint,
        )
    if earlier_run(folder).digest != earlier.digest:
        raise MismatchError(
            "the run that this one continues has changed since", detail=str(folder.root), hint=hint
        )


def check_continued(folder: RunFolder, output: Path, config: Config) -> None:
    """Raise OptionError where a config's tasks cannot go on from a run, in the folder `output`."""
    record = folder.read_record()
    if record is None or record["state"] != "finished":
        raise OptionError(
            "only a finished run can be built on",
            detail=f"--continue {folder.root}: "
            + ("no run of clmerge" if record is None else "it is not finished"),
            hint=None if record is None else f"clmerge train CONFIG --resume {folder.root}",
        )
    if output.resolve() == folder.root.resolve():
        raise OptionError(
            "the new tasks' run needs a folder of its own",
            detail=f"output is {output}, the run to build on",
            hint="-o another; the earlier run stays as it is",
        )
    if not pointer(folder.state):
        raise OptionError(
            "the earlier run's state was removed, and a run is built on that",
            detail=f"{folder.state}: no current.json",
            hint=f"begin with what it wrote: model = {record['model']} of that folder, with "
            "ewc.sidecars, ewc.anchors and replay.buffer from its clmerge/",
        )
    names = {task.name for task in config.task} | (config.gate.suites if config.gate else {}).keys()
    if again := sorted(names & {path.stem for path in folder.validation.glob("*.jsonl")}):
        raise OptionError(
            "a task of this name is in the earlier run",
            detail=f"{folder.root}: {again[0]}",
            hint="give new rows a name of their own",
        )
    if config.ewc is not None and config.ewc.sidecars:
        raise OptionError(
            "a run that continues another takes over what that one protects, and no sidecars",
            detail=f"--continue {folder.root} with ewc.sidecars",
            hint="leave out one of them: --continue, or ewc.sidecars and ewc.anchors",
        )
    if other := list(_set_otherwise(folder, config)):
        raise OptionError(
            "the earlier run's average and drift detector go on, and they are set otherwise here",
            detail=f"{folder.config} differs in {', '.join(other)}",
            hint="set them as they were, or leave the table out",
        )


def _set_otherwise(folder: RunFolder, config: Config) -> Iterator[str]:
    """Keys of what goes on with its state in a run that continues another, and are not equal."""
    stored, now = stored_config(folder), config.model_dump(mode="json", by_alias=True)
    for table, free in (("ema", {"publish", "snapshot_every"}), ("drift", {"stop"})):
        if stored.get(table) is not None and now[table] is not None:
            for key in differing(stored[table], now[table]):
                if key not in free:
                    yield f"{table}.{key}"


def check_same_base(folder: RunFolder, base: str) -> None:
    """Raise MismatchError where an earlier run's adapter belongs to other weights than `base`."""
    if read_inputs(folder)["base"] != base:
        raise MismatchError(
            "the earlier run's adapter was trained on another model",
            detail=f"{folder.root}: weights {read_inputs(folder)['base'][:16]}, not {base[:16]}",
            hint="model must be the one that the earlier run names in its config.yaml",
        )
