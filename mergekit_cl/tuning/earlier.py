"""What a run leaves of what it began with: for those that resume it, and those that build on it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.errors import FormatError, MismatchError
from mergekit_cl.output.durable import write_durably
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.resuming import differing
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.state import pointer

INPUTS = "inputs.json"
TAKEN_OVER = ("replay.buffer", "drift.state")
"""Files of which a run's state holds all: others may go on writing them."""

Judged = dict[str, tuple[Row, ...]]


def write_inputs(
    folder: RunFolder, inputs: Mapping[str, Any], judged: Judged, continues: Path | None
) -> None:
    """Keep digests, and the rows that tasks are judged by, of earlier runs too, in their order.

    continues: the folder of the run that this one goes on from.
    """
    for name, rows in judged.items():
        lines = [
            json.dumps({"id": r.id, "kind": r.kind, "content": dict(r.content), "where": r.where})
            for r in rows
        ]
        text = "".join(f"{line}\n" for line in lines)
        write_durably(folder.validation / f"{name}.jsonl", text.encode())
    place = None if continues is None else str(continues.absolute())
    content = {**inputs, "order": list(judged), "continues": place}
    text = json.dumps(content, indent=2, sort_keys=True)
    write_durably(folder.root / INPUTS, f"{text}\n".encode())


def has_inputs(folder: RunFolder, now: Mapping[str, Any]) -> bool:
    """Whether weights, rows and files are those that the run began with."""
    stored = read_inputs(folder)
    return all(stored.get(key) == value for key, value in now.items())


def check_inputs(folder: RunFolder, now: Mapping[str, Any]) -> dict[str, Any]:
    """What a run began with, by the keys of `now`, which is the same still.

    Raises MismatchError where weights, rows or files are not, but for those that the run's own
    state holds by now.
    """
    stored = read_inputs(folder)
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
    changed = list(differing(stored["files"], now["files"]))
    if pointer(folder.state):
        changed = [key for key in changed if key not in TAKEN_OVER]
    if changed:
        raise MismatchError(
            "what the config names has changed since the run began",
            detail=f"{folder.root}: {changed[0]}",
            hint="put it back as it was, or begin a new run",
        )
    return {key: stored[key] for key in now}


def base_of(folder: RunFolder) -> str:
    """The digest of the weights that a run began with."""
    return str(read_inputs(folder)["base"])


def judged_before(folder: RunFolder, but: Collection[str] = ()) -> Judged:
    """The rows that an earlier run's tasks are judged by, {task: rows}, oldest first.

    but: tasks to leave out. Raises FormatError where a file of them is damaged.
    """
    found: Judged = {}
    order = list(read_inputs(folder).get("order", []))
    paths = {path.stem: path for path in folder.validation.glob("*.jsonl")}
    for name in [*(n for n in order if n in paths), *sorted(paths.keys() - set(order))]:
        if name in but:
            continue
        try:
            lines = [json.loads(line) for line in paths[name].read_text().splitlines()]
            found[name] = tuple(Row(v["kind"], v["content"], v["where"], v["id"]) for v in lines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                "validation rows of an earlier run cannot be read",
                detail=f"{paths[name]}: {error!r:.160}",
            ) from error
    return found


def read_inputs(folder: RunFolder) -> dict[str, Any]:
    """What `write_inputs` wrote; raises FormatError."""
    path = folder.root / INPUTS
    try:
        found = json.loads(path.read_bytes())
        kinds = {"base": str, "tasks": dict, "files": dict}
        if wrong := [key for key, kind in kinds.items() if not isinstance(found[key], kind)]:
            raise ValueError(", ".join(wrong))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            "what the run began with cannot be read",
            detail=f"{path}: {error!r:.160}",
            hint="begin a new run",
        ) from error
    return dict(found)
