"""When a run may go on with what another run left: both must be the same in every way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.manifest import versions
from mergekit_cl.methods.method import Method
from mergekit_cl.output.target import side_folder


def describe_run(method: Method, recorded: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """What must be equal: what was asked, sizes and times of the inputs, and the program.

    recorded: the options that decide bytes.
    """
    inputs = [[role, *stamp] for role, source in method.sources() for stamp in source.stamps()]
    return {
        "command": method.command,
        "options": dict(recorded),
        "inputs": inputs,
        "output": str(target.absolute()),
        "versions": versions(),
    }


def is_next_update(completed: Mapping[str, Any], wanted: Mapping[str, Any], state: Path) -> bool:
    """Whether `wanted` is `completed` given again, after that has replaced the state itself.

    Both are `describe_run`s of updates in place. The state is another one now and has had more
    updates, so that these are counted; the rest must agree.
    """
    decays = completed["options"].get("decays", [])
    before = completed["options"].get("updates_before")
    return (
        before is not None
        and wanted["options"].get("updates_before") == before + len(decays)
        and _but_for_state(completed, state) == _but_for_state(wanted, state)
    )


def _but_for_state(run: Mapping[str, Any], state: Path) -> dict[str, Any]:
    own = (str(state.absolute()), str(side_folder(state).absolute()))
    counted = ("decays", "updates_before")  # a warm-up makes each decay depend on the count
    return {
        **run,
        "options": {k: v for k, v in run["options"].items() if k not in counted},
        "inputs": [
            [role, place, *rest]
            for role, place, *rest in run["inputs"]
            if place not in own and not place.startswith(tuple(f"{one}/" for one in own))
        ],
    }
