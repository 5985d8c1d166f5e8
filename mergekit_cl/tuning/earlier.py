"""What a run leaves so that it can be resumed with the same inputs, or built on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.errors import FormatError, MismatchError, OptionError
from mergekit_cl.output.durable import write_durably
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.taskrows import TaskRows

INPUTS = "inputs.json"

Judged = dict[str, tuple[Row, ...]]


def describe_inputs(base: str, tasks: tuple[TaskRows, ...]) -> dict[str, Any]:
    """Digests of the weights a run begins with and of the rows of its tasks."""
    return {"base": base, "tasks": {task.name: task.digest for task in tasks}}


def write_inputs(folder: RunFolder, inputs: Mapping[str, Any], judged: Judged) -> None:
    """Keep digests, and the rows that tasks are judged by, of earlier runs too, in their order."""
    for name, rows in judged.items():
        lines = [
            json.dumps({"id": r.id, "kind": r.kind, "content": dict(r.content), "where": r.where})
            for r in rows
        ]
        text = "".join(f"{line}\n" for line in lines)
        write_durably(folder.validation / f"{name}.jsonl", text.encode())
    text = json.dumps({**inputs, "order": list(judged)}, indent=2, sort_keys=True)
    write_durably(folder.root / INPUTS, f"{text}\n".encode())


def has_inputs(folder: RunFolder, now: Mapping[str, Any]) -> bool:
    """Whether weights and rows are those that the run began with."""
    stored = _read(folder)
    return all(stored[key] == now[key] for key in ("base", "tasks"))


def check_inputs(folder: RunFolder, now: Mapping[str, Any]) -> None:
    """Raise MismatchError where weights or rows are not those that the run began with."""
    stored = _read(folder)
    if stored["base"] != now["base"]:
        raise MismatchError(
            "the model has changed since the run began",
            detail=f"{folder.root}: weights {stored['base'][:16]} then, {now['base'][:16]} now",
            hint="put the model back as it was, or begin a new run",
        )
    for name, digest in stored["tasks"].items():
        if now["tasks"].get(name) != digest:
            raise MismatchError(
                "the rows of a task have changed since the run began",
                detail=f"{folder.root}: task {name}",
                hint="put its data back as it was; --continue adds new rows as a task of their own",
            )


def base_of(folder: RunFolder) -> str:
    """The digest of the weights that a run began with."""
    return str(_read(folder)["base"])


def check_continued(folder: RunFolder, output: Path, names: set[str]) -> None:
    """Raise OptionError where the tasks `names` cannot go on from a run, in the folder `output`."""
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
    if again := sorted(names & {path.stem for path in folder.validation.glob("*.jsonl")}):
        raise OptionError(
            "a task of this name is in the earlier run",
            detail=f"{folder.root}: {again[0]}",
            hint="give new rows a name of their own",
        )


def check_same_base(folder: RunFolder, base: str) -> None:
    """Raise MismatchError where an earlier run's adapter belongs to other weights than `base`."""
    if _read(folder)["base"] != base:
        raise MismatchError(
            "the earlier run's adapter was trained on another model",
            detail=f"{folder.root}: weights {_read(folder)['base'][:16]}, not {base[:16]}",
            hint="model must be the one that the earlier run names in its config.yaml",
        )


def judged_before(folder: RunFolder) -> Judged:
    """The rows that an earlier run's tasks are judged by, {task: rows}, oldest first.

    Raises FormatError where a file of them is damaged.
    """
    found: Judged = {}
    order = list(_read(folder).get("order", []))
    paths = {path.stem: path for path in folder.validation.glob("*.jsonl")}
    for name in [*(n for n in order if n in paths), *sorted(paths.keys() - set(order))]:
        try:
            lines = [json.loads(line) for line in paths[name].read_text().splitlines()]
            found[name] = tuple(Row(v["kind"], v["content"], v["where"], v["id"]) for v in lines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                "validation rows of an earlier run cannot be read",
                detail=f"{paths[name]}: {error!r:.160}",
            ) from error
    return found


def _read(folder: RunFolder) -> dict[str, Any]:
    path = folder.root / INPUTS
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found["base"], str) or not isinstance(found["tasks"], dict):
            raise ValueError("base, tasks")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            "what the run began with cannot be read",
            detail=f"{path}: {error!r:.160}",
            hint="begin a new run",
        ) from error
    return dict(found)
