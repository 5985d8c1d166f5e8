"""`fisher-merge`: weights per entry, by what each model's data says of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.merge.fisher import Fallback, fisher_weighted
from mergekit_cl.merge.formula import FisherMean, Formula, mean_of
from mergekit_cl.merge.kernel import Kernel, Merged
from mergekit_cl.merge.linear import weighted_mean
from mergekit_cl.methods.linear import base_operand, report_operands
from mergekit_cl.methods.method import Method, resolve_weights
from mergekit_cl.plan import Ingredients, Operand, Selection, float32_for
from mergekit_cl.sidecar import (
    Normalize,
    Sidecar,
    check_comparable,
    complete_statistics,
    scales,
    under_names_of_merge,
)
from mergekit_cl.ties import find_ties

if TYPE_CHECKING:
    import torch

OnMissing = Literal["error", "linear", "base"]


def fisher_method(
    checkpoints: Sequence[Checkpoint],
    sidecars: Sequence[Sidecar],
    *,
    weights: Sequence[float] | None,
    normalize: Normalize,
    floor: float,
    fallback: Fallback,
    on_missing: OnMissing,
    base: Checkpoint | None,
    allow_mixed: bool,
    selection: Selection,
) -> Method:
    """Merge `checkpoints` by their `sidecars` (formulas: merge/fisher.py).

    Raises OptionError for negative weights or a missing base; MismatchError for sidecars that do
    not compare, and for tensors without Fisher where `on_missing` is "error".
    """
    resolved = resolve_weights(weights, len(checkpoints), normalize=True)
    if min(resolved) < 0:
        raise OptionError(
            "a Fisher merge needs weights of 0 or more", detail=f"--weights {list(resolved)}"
        )
    if base is None and "base" in (fallback, on_missing):
        raise OptionError("falling back to the base needs one", hint="add --base PATH")
    if not allow_mixed:
        check_comparable(sidecars)
    ties = find_ties(checkpoints)
    full, notes = with_sums([under_names_of_merge(sidecar, ties) for sidecar in sidecars])
    per_tensor = scales(full, resolved, normalize, floor)
    merged = [
        name
        for name, tensor in checkpoints[0].tensors.items()
        if tensor.is_float and name in selection and name not in ties.canonical
    ]
    notes += _missing(merged, full, set(per_tensor), on_missing)

    mean = mean_of(resolved)

    def recipe(name: str, inputs: Sequence[Operand]) -> Ingredients:
        more, places = report_operands(name, len(inputs), full)
        with_base = () if base is None else (base_operand(name, inputs, base),)
        kernel: Kernel
        formula: Formula | None = None
        if name in per_tensor:
            kernel = partial(fisher_weighted, scales=per_tensor[name], fallback=fallback)
            if fallback == "linear" and min(resolved) > 0:
                formula = FisherMean(tuple(per_tensor[name]))
        elif on_missing == "base" and not _is_buffer(name, full):
            kernel = _last_operand
        else:
            kernel = partial(_linear, count=len(inputs), weights=resolved)
            formula = mean
        place = None if base is None else len(inputs) + len(more)
        closeness = float32_for(len(inputs))
        return Ingredients(kernel, more + with_base, places, closeness, place, formula)

    options = {
        "weights": list(resolved),
        "normalize": normalize,
        "floor": floor,
        "fallback": fallback,
        "on_missing_fisher": on_missing,
        "estimators": [sidecar.metadata["estimator"] for sidecar in full],
        "units": [sidecar.metadata["unit"] for sidecar in full],
        "levels": [sidecar.metadata["level"] for sidecar in full],
    }
    return Method(
        "fisher-merge", options, checkpoints, recipe, full, base, notes, weighted_by_fisher=True
    )


def with_sums(sidecars: Sequence[Sidecar]) -> tuple[list[Sidecar], list[str]]:
    """The sidecars with sums for every tensor, and notes on what was read to make them."""
    completed = [complete_statistics(sidecar) for sidecar in sidecars]
    notes = [
        f"{sidecar.checkpoint.path} holds no sums: read once more to make them"
        for sidecar, was_read in completed
        if was_read
    ]
    return [sidecar for sidecar, _ in completed], notes


def _missing(
    merged: Sequence[str], sidecars: Sequence[Sidecar], covered: set[str], on_missing: OnMissing
) -> list[str]:
    """Notes on float tensors without Fisher; raises MismatchError where they are not allowed."""
    without = [name for name in merged if name not in covered]
    buffers = [name for name in without if _is_buffer(name, sidecars)]
    others = [name for name in without if name not in set(buffers)]
    notes = []
    if buffers:
        notes.append(f"{len(buffers)} buffers merge linearly: {', '.join(buffers[:3])}")
    if others and on_missing == "error":
        reasons = [
            f"{name}: {s.reason_missing(name)} in {s.checkpoint.path}"
            for name in others
            for s in sidecars
            if s.tensor(name) is None
        ]
        raise MismatchError(
            f"{len(others)} tensors have no Fisher",
            detail="\n  ".join(reasons),
            hint="compute it for them, or give --on-missing-fisher linear",
        )
    if others:
        notes.append(f"{len(others)} tensors without Fisher: {on_missing}: {', '.join(others[:3])}")
    return notes


def _is_buffer(name: str, sidecars: Sequence[Sidecar]) -> bool:
    return all(
        sidecar.tensor(name) is not None or sidecar.reason_missing(name) == "buffer"
        for sidecar in sidecars
    )


def _linear(
    operands: Sequence[torch.Tensor],
    scratch: Sequence[torch.Tensor],
    *,
    count: int,
    weights: Sequence[float],
) -> Merged:
    return weighted_mean(operands[:count], scratch, weights=weights)


def _last_operand(operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor]) -> Merged:
    return Merged(operands[-1])
