"""Merges on a device of threads; see fake_device.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fake_device import FakeBackend

from mergekit_cl import stream
from mergekit_cl.block import BLOCK
from mergekit_cl.merge import fisher, rounding
from mergekit_cl.ring import budget, card
from mergekit_cl.ring.worker import RingWorker


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take the way they take on a card, whose values cost a wait."""
    for module in (fisher, rounding):
        monkeypatch.setattr(module, "can_be_asked", lambda tensor: False)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeBackend], None]:
    """Put a fake in the place of the GPU; slots of one block, and nothing too small for them."""

    def put(backend: FakeBackend) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(card, "open_backend", lambda named: backend)
        monkeypatch.setattr(budget, "CHUNK", BLOCK)
        monkeypatch.setattr(stream, "RingWorker", partial(RingWorker, smallest=0))

    return put
