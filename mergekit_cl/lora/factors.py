"""The numbers of edits: factors as float64 panels, kept only while their tensor is being made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from mergekit_cl.finite import count_nonfinite, nonfinite_input
from mergekit_cl.lora.adapter import Adapter
from mergekit_cl.lora.edits import LowRank, Slice
from mergekit_cl.lora.kernels import Panel, Window

if TYPE_CHECKING:
    import torch

KEPT = 2**26
"""Bytes of factors that are kept once they are made; those in use are kept in any case."""


class Kept:
    """What was made last, so that the workers on one tensor make its factors once."""

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._made: OrderedDict[object, tuple[tuple[torch.Tensor, ...], int]] = OrderedDict()

    def get(
        self, key: object, make: Callable[[], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        """What `make` gives; it runs once, unless that was dropped since."""
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    return self._made[key][0]
            made = make()
            with self._lock:
                self._made[key] = made, sum(t.numel() * t.element_size() for t in made)
                while len(self._made) > 1 and sum(n for _, n in self._made.values()) > self._limit:
                    self._made.popitem(last=False)
            return made


def read_stored(adapter: Adapter, name: str, *, allow_nonfinite: bool) -> torch.Tensor:
    """A tensor of an adapter in its shape, float64; raises NonFiniteError naming it."""
    return _exact(adapter, name, _stored(adapter, name), allow_nonfinite)


def panel_of(adapter: Adapter, edit: LowRank, *, allow_nonfinite: bool) -> Panel:
    """The update as a product of two float64 matrices, the scale in the left one."""
    down, up = _stored(adapter, edit.down), _stored(adapter, edit.up)
    if edit.part is not None:
        down, up = of_expert(down, up, edit.rank, edit.part)
    down = _exact(adapter, edit.down, down.flatten(1), allow_nonfinite)
    up = _exact(adapter, edit.up, up.flatten(1), allow_nonfinite)
    if edit.blocks_down > 1:
        down = diagonal(down, edit.blocks_down)
    if edit.blocks_up > 1:
        up = diagonal(up, edit.blocks_up)
    left, right = (down.T, up.T) if edit.form in ("transposed", "embedding") else (up, down)
    window = Window(edit.begin, edit.rows, edit.columns)
    return Panel(window, left.mul(edit.scale).contiguous(), right.contiguous())


def of_expert(
    down: torch.Tensor, up: torch.Tensor, rank: int, part: Slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert's factors out of those that all experts share, as views."""
    own = slice(part.expert * rank, (part.expert + 1) * rank)
    columns = own if part.grouped else slice(part.expert, None, part.experts)
    rows = slice(None) if part.rows is None else slice(*part.rows)
    return down[own], up[rows, columns]


def diagonal(stacked: torch.Tensor, blocks: int) -> torch.Tensor:
    """The full matrix of which the blocks on the diagonal are stacked upon each other."""
    import torch

    whole: torch.Tensor = torch.block_diag(*stacked.chunk(blocks, dim=0))  # type: ignore[no-untyped-call]
    return whole


def panel_bytes(edit: LowRank) -> int:
    """Memory of a panel and what it is made from."""
    return 2 * 8 * edit.rank * (edit.rows + edit.columns)


def _stored(adapter: Adapter, name: str) -> torch.Tensor:
    """A tensor of an adapter as it is stored, usually a view of its file."""
    info = adapter.tensors[name]
    return adapter.checkpoint.read(info.name).reshape(info.shape)


def _exact(
    adapter: Adapter, name: str, stored: torch.Tensor, allow_nonfinite: bool
) -> torch.Tensor:
    import torch

    if not allow_nonfinite and (bad := count_nonfinite(stored)):
        raise nonfinite_input(f"{adapter.checkpoint.path}: {name} ({bad} elements)")
    return stored.to(torch.float64, copy=True)
