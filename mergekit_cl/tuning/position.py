"""Where a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """What is done so far.

    task: index of the one at work. step: its optimizer steps. consumed: its new rows, repeats
    included. begun: whether what is measured before a task has been. steps, tokens: of the run.
    """

    task: int = 0
    step: int = 0
    consumed: int = 0
    begun: bool = False
    steps: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)
