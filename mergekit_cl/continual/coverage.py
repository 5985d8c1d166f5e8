"""How much of what a protection knows reaches the parameters that are trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import in_buckets, local
from mergekit_cl.continual.ewc import Protection, protected_rows
from mergekit_cl.errors import InputError, MismatchError, NonFiniteError

SHOWN = 3


@dataclass(frozen=True)
class Coverage:
    """What is held back, and by how much of the Fisher.

    protected: trained parameters that the penalty reaches. unprotected: trained, without Fisher.
    frozen: in the protection, but not trained. absent: in the protection, but no parameter.
    grown: {protected parameter: rows at its end without Fisher}. mass: sum of the Fisher over
    `protected`, in the sidecar's unit. share: mass over the sum of the whole Fisher, 0 to 1.
    """

    protected: tuple[str, ...]
    unprotected: tuple[str, ...]
    frozen: tuple[str, ...]
    absent: tuple[str, ...]
    grown: Mapping[str, int]
    mass: float
    share: float


def coverage(
    parameters: Mapping[str, Tensor], protection: Protection, *, adapted: Collection[str] = ()
) -> Coverage:
    """Match a protection to parameters; reads the whole Fisher once, so call it once per task.

    adapted: frozen parameters whose weight moves all the same, by low-rank factors; see
    continual/lowrank.py. Raises MismatchError where nothing of the Fisher reaches a trained
    parameter (the penalty would be 0) or a shape differs, NonFiniteError and InputError for a
    Fisher that is not finite or is negative.
    """
    masses = {name: _mass(name, fisher) for name, fisher in protection.fisher.items()}
    trained = {n for n, p in parameters.items() if p.requires_grad or n in adapted}
    protected, grown = [], {}
    for name, fisher in protection.fisher.items():
        if name in trained:
            protected.append(name)
            if protected_rows(name, parameters[name].shape, fisher.shape) is not None:
                grown[name] = parameters[name].shape[0] - fisher.shape[0]
    total = math.fsum(masses.values())
    mass = math.fsum(masses[name] for name in protected)
    unprotected = tuple(sorted(trained - masses.keys()))
    frozen = tuple(n for n in masses if n in parameters and n not in trained)
    absent = tuple(n for n in masses if n not in parameters)
    if not mass > 0:
        raise _nothing_matches(total, protected, unprotected, frozen, absent)
    return Coverage(tuple(protected), unprotected, frozen, absent, grown, mass, mass / total)


def _mass(name: str, fisher: Tensor) -> float:
    """Sum in float64; of a sharded tensor, of all its parts."""
    total = torch.zeros((), dtype=torch.float64, device=local(fisher).device)
    smallest = 0.0
    for bucket in in_buckets([(None, (local(fisher).detach(),))]):
        for part in bucket.columns[0]:
            total += part.sum(dtype=torch.float64)
            smallest = min(smallest, float(part.min()))
    if hasattr(fisher, "to_local"):
        summed: Any = fisher.double().sum()
        total = summed.full_tensor()
    if not math.isfinite(float(total)):
        raise NonFiniteError("a Fisher is not finite", detail=name)
    if smallest < 0:
        raise InputError("a Fisher is negative", detail=f"{name}: {smallest:g}")
    return float(total)


def _nothing_matches(
    total: float,
    protected: list[str],
    unprotected: tuple[str, ...],
    frozen: tuple[str, ...],
    absent: tuple[str, ...],
) -> MismatchError:
    if total == 0 or protected:
        which = protected or [*frozen, *absent]
        return MismatchError(
            "the Fisher of everything that is trained is 0, so nothing would be protected",
            detail=listed("parameters with a Fisher of 0", which),
            hint="compute the Fisher on rows that carry a loss",
        )
    found = (
        listed("in the protection, no parameter", absent),
        listed("in the protection, frozen", frozen),
        listed("trained, not in the protection", unprotected),
    )
    return MismatchError(
        "the protection reaches no trained parameter, so nothing would be protected",
        detail="; ".join(part for part in found if part),
        hint="take the Fisher of the model that is trained, under the same parameter names",
    )


def listed(what: str, names: list[str] | tuple[str, ...]) -> str:
    """The first names and how many more there are; empty where there is none."""
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}"
