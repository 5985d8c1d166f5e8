"""Corresponding tensors in pieces that fit a small scratch, many small ones in one call.

A formula over whole weights would need temporaries as large as the model. Here large tensors are
cut and small ones are gathered, so that each `torch._foreach_*` call works on at most one scratch
of elements: what a core's cache holds on a CPU, what makes launches cheap on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

ON_CPU = 2**17
"""Elements of scratch: 512 KiB of float32."""
ELSEWHERE = 2**24
"""Elements of scratch on an accelerator: 64 MiB of float32."""


@dataclass(frozen=True)
class Bucket:
    """Pieces of several groups that share `key`, devices and dtypes.

    columns: one list per place in the groups, of pieces of equal shapes across lists. scratch: the
    same shapes again, to be written, in float32 (float64 where a piece is); its values are lost
    when the next bucket comes.
    """

    key: Hashable
    columns: tuple[list[Tensor], ...]
    scratch: tuple[list[Tensor], ...]


def in_buckets(
    groups: Iterable[tuple[Hashable, tuple[Tensor, ...]]], *, scratches: int = 1
) -> Iterator[Bucket]:
    """Walk through groups of tensors of equal shape, in order, bucket by bucket.

    groups: (key, tensors); the key is whatever a formula needs besides the tensors.
    """
    held: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    waiting: list[tuple[Tensor, ...]] = []
    elements, kind = 0, None
    for key, group in groups:
        limit = ON_CPU if group[0].device.type == "cpu" else ELSEWHERE
        now = (key, group[0].device, *(tensor.dtype for tensor in group))
        for piece in _pieces(group, limit):
            if waiting and (now != kind or elements + piece[0].numel() > limit):
                yield _bucket(kind, waiting, held, scratches)
                waiting, elements = [], 0
            kind = now
            waiting.append(piece)
            elements += piece[0].numel()
    if waiting:
        yield _bucket(kind, waiting, held, scratches)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; a plain tensor as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def working_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """float32, or float64 where one of these is."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def _pieces(group: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    first = group[0]
    if first.numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in group):
        flat = tuple(tensor.view(-1) for tensor in group)
        for start in range(0, first.numel(), limit):
            yield tuple(tensor[start : start + limit] for tensor in flat)
    elif first.numel() <= limit:
        yield group
    else:
        row = math.prod(first.shape[1:])
        if row > limit:
            for rows in zip(*(tensor.unbind(0) for tensor in group), strict=True):
                yield from _pieces(rows, limit)
        else:
            for start in range(0, len(first), limit // row):
                yield tuple(tensor[start : start + limit // row] for tensor in group)


def _bucket(
    kind: tuple[Hashable, ...] | None,
    pieces: list[tuple[Tensor, ...]],
    held: dict[tuple[torch.device, torch.dtype], list[Tensor]],
    scratches: int,
) -> Bucket:
    assert kind is not None
    firsts = [piece[0] for piece in pieces]
    place = (firsts[0].device, working_dtype(pieces[0]))
    needed = sum(piece.numel() for piece in firsts)
    stores = held.get(place, [])
    if not stores or stores[0].numel() < needed:
        stores = [torch.empty(needed, device=place[0], dtype=place[1]) for _ in range(scratches)]
        held[place] = stores
    shaped = []
    for store in stores:
        ends = list(accumulate(piece.numel() for piece in firsts))
        starts = [0, *ends[:-1]]
        parts = zip(starts, ends, firsts, strict=True)
        shaped.append([store[start:end].view(one.shape) for start, end, one in parts])
    columns = tuple(list(column) for column in zip(*pieces, strict=True))
    return Bucket(kind[0], columns, tuple(shaped))
