"""Alarms of river's own detectors, for comparison: JSON lines in, JSON lines out.

    python benchmarks/river_alarms.py FOLDER < jobs.jsonl

FOLDER: river's wheel, unpacked and not installed. A job is {"detector", "options", "values"}; the
answer is the list of rows (from 1) at which it tells of a drift. {"datasets": true} answers with
the annotated series that the wheel carries: {name: {"file", "annotations"}}.

river's package imports pandas and scipy, which its detectors do not need; where they are missing,
empty modules stand in for them. To be run as a process of its own.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("pandas", "scipy")


class Absent(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIn:
    """Finds an empty module for each of `names` and what is inside."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


def answer(job: dict[str, Any]) -> Any:
    """What river says."""
    from river import drift

    if job.get("datasets"):
        from river.drift import datasets

        series = [getattr(datasets, name)() for name in datasets.__all__]
        return {
            type(one).__name__: {"file": str(one.path), "annotations": one.annotations}
            for one in series
        }
    detector = getattr(drift, job["detector"])(**job["options"])
    alarms = []
    for row, value in enumerate(job["values"], start=1):
        detector.update(value)
        if detector.drift_detected:
            alarms.append(row)
    return alarms


def main(folder: str) -> None:
    """Answer every job."""
    sys.path.insert(0, folder)
    absent = StandIn([name for name in UNUSED if find_spec(name) is None])
    sys.meta_path.insert(0, absent)  # type: ignore[arg-type]
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))))


if __name__ == "__main__":
    main(sys.argv[1])
