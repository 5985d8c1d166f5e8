"""What a merge method hands to the run: how to make each tensor, from which inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mergekit_cl.carry import Carry
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import OptionError
from mergekit_cl.merge.linear import normalized
from mergekit_cl.plan import Plan, Recipe, Selection
from mergekit_cl.results import TensorResult
from mergekit_cl.sidecar import Sidecar


class Planner(Protocol):
    """Plans what is no merge of whole checkpoints of the same tensors."""

    def __call__(
        self,
        *,
        selection: Selection,
        dtype: str | None,
        shard_size: int,
        notes: Sequence[str],
        keep_residuals: int | None,
        allow_nonfinite: bool,
    ) -> Plan:
        """Arguments as of `plan_merge`; allow_nonfinite: let NaN and Inf through."""


class Beside(Protocol):
    """Writes into the side folder of an output whose weights and companions are in `out`."""

    def __call__(
        self, out: Path, side: Path, plan: Plan, results: Mapping[str, TensorResult]
    ) -> Mapping[str, Any]:
        """What the manifest says of it."""


@dataclass(frozen=True)
class Method:
    """A method bound to its inputs.

    command, options: as recorded in the manifest; they and the inputs decide every byte.
    weighted_by_fisher: whether the sidecars decide values, or only what is reported.
    newest_integers: integers come from the last input instead of having to agree. updates: EMA
    updates the output has had.
    checkpoints: what is merged. sidecars: the Fisher of each, or None. base: a further checkpoint
    some formulas need. adapters: what is added to the first. planner: plans instead of
    `plan_merge` with the recipe. base_digest: what the first input's weights digest has to be.
    record: what the manifest says besides. sweep: what its weights were chosen by, for the report.
    """

    command: str
    options: Mapping[str, Any]
    checkpoints: Sequence[Checkpoint]
    recipe: Recipe | None
    sidecars: Sequence[Sidecar | None]
    base: Checkpoint | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    carries: Sequence[Carry | None] = ()
    newest_integers: bool = False
    weighted_by_fisher: bool = False
    updates: int = 0
    adapters: Sequence[Checkpoint] = ()
    planner: Planner | None = None
    base_digest: str | None = None
    record: Callable[[Plan, Mapping[str, TensorResult]], Mapping[str, Any]] | None = None
    companions: Callable[[Path], None] | None = None
    beside: Beside | None = None
    sweep: Mapping[str, Any] | None = None

    def sources(self) -> list[tuple[str, Checkpoint]]:
        """Everything that is read, with its role."""
        found = [("input", checkpoint) for checkpoint in self.checkpoints]
        found += [("adapter", adapter) for adapter in self.adapters]
        found += [("fisher", sidecar.checkpoint) for sidecar in self.sidecars if sidecar]
        if self.base is not None:
            found.append(("base", self.base))
        found += [("carry", carry.checkpoint) for carry in self.carries if carry]
        return found


def resolve_weights(
    given: Sequence[float] | None, count: int, *, normalize: bool
) -> tuple[float, ...]:
    """One weight per input: equal ones where none are given; summing to 1 if `normalize`.

    Raises OptionError for the wrong number of weights and for a sum of 0.
    """
    weights = tuple(given) if given is not None else (1.0,) * count
    if given is None and not normalize:
        raise OptionError("--no-normalize needs weights", hint="add --weights w1,w2")
    if len(weights) != count:
        raise OptionError(
            f"{count} inputs need {count} weights",
            detail=f"--weights {','.join(map(str, weights))}",
            hint="give one weight per input, in their order",
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise OptionError("weights must be finite numbers", detail=f"--weights {weights}")
    if not normalize:
        return weights
    try:
        return normalized(weights)
    except ValueError as error:
        raise OptionError(
            str(error),
            detail=f"--weights {','.join(map(str, weights))}",
            hint="give weights with a sum other than 0, or --no-normalize where that is meant",
        ) from error
