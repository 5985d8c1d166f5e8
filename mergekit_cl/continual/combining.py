"""Protections of several tasks as one, so that memory and time do not grow with their number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import working_dtype
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.errors import MismatchError

Pair = tuple[Tensor, Tensor]
"""Fisher and anchor of one parameter."""


def add_protections(old: Protection, new: Protection) -> Protection:
    """Two quadratics as one (`sum`): F = F1 + F2, the anchor their F-weighted mean.

    Exact up to a constant: its gradient is the sum of both gradients everywhere. Where both F are
    0 the anchor is the newer one. What only one protects (a name, the rows of a grown vocabulary)
    is taken from it. Raises MismatchError where shapes differ otherwise.
    Source: Kirkpatrick et al. 2017 (a penalty per task); Huszar 2018 on what that counts twice.
    """
    return _combined(old, new, 1.0, _weighted_mean)


def decay_protection(old: Protection, new: Protection, gamma: float) -> Protection:
    """What is remembered fades (`online`): F = gamma F_old + F_new, with the newest anchor.

    gamma: from 0 (only the newest task counts) to 1 (nothing fades). Where only the old one has
    an anchor, that is kept, its F times gamma.
    Source: Schwarz et al. 2018, section 3.
    """
    return _combined(old, new, gamma, _newest)


def _weighted_mean(old: Pair, new: Pair) -> Tensor:
    share = new[0] / (old[0] + new[0])
    # lerp reaches both of its ends exactly: an entry that one task alone protects keeps its anchor.
    return torch.lerp(old[1], new[1], share.nan_to_num_(nan=1.0))


def _newest(old: Pair, new: Pair) -> Tensor:
    return new[1]


def _combined(
    old: Protection, new: Protection, gamma: float, anchor_of: Callable[[Pair, Pair], Tensor]
) -> Protection:
    fisher, anchor = {}, {}
    for name in {**old.fisher, **new.fisher}:
        before, after = _pair(old, name, gamma), _pair(new, name, 1.0)
        if before is not None and after is not None:
            fisher[name], anchor[name] = _joined(name, before, after, anchor_of)
        else:
            fisher[name], anchor[name] = next(pair for pair in (before, after) if pair)
    return Protection(fisher, anchor)


def _pair(protection: Protection, name: str, gamma: float) -> Pair | None:
    if name not in protection.fisher:
        return None
    pair = protection.fisher[name], protection.anchor[name]
    dtype = working_dtype(pair)
    fisher = pair[0].to(dtype)
    return (fisher if gamma == 1 else fisher * gamma), pair[1].to(dtype)


def _joined(name: str, old: Pair, new: Pair, anchor_of: Callable[[Pair, Pair], Tensor]) -> Pair:
    if old[0].shape == new[0].shape:
        return old[0] + new[0], anchor_of(old, new)
    if old[0].shape[1:] != new[0].shape[1:] or not old[0].ndim == new[0].ndim > 0:
        raise MismatchError(
            "two tasks protect a parameter of different shapes",
            detail=f"{name}: {list(old[0].shape)} and {list(new[0].shape)}",
            hint="rows may be added at the end (a grown vocabulary), nothing else may change",
        )
    rows = min(len(old[0]), len(new[0]))
    common = _joined(name, _rows(old, rows), _rows(new, rows), anchor_of)
    longer = old if len(old[0]) > rows else new
    return torch.cat([common[0], longer[0][rows:]]), torch.cat([common[1], longer[1][rows:]])


def _rows(pair: Pair, rows: int) -> Pair:
    return pair[0][:rows], pair[1][:rows]
