"""Which of several processes this one is, as torchrun or Slurm's `srun` with it set it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """rank: among `world` processes; the first one speaks. local: among those of this machine."""

    rank: int
    world: int
    local: int


def launched() -> Launched:
    """From RANK, WORLD_SIZE and LOCAL_RANK; one process alone where they are not all numbers."""
    given = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdigit() for value in given):
        return Launched(0, 1, 0)
    return Launched(*map(int, given))
