"""Pieces of work, each done once, whoever does it; and an error stops all."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
import torch

from mergekit_cl.workers import share_out


@pytest.mark.parametrize("workers", [1, 3])
def test_every_piece_is_done_once(workers: int) -> None:
    done: list[int] = []

    def new_worker() -> Callable[[int], None]:
        return done.append

    share_out(range(100), workers, new_worker)
    assert sorted(done) == list(range(100))


def test_an_error_stops_the_others_and_is_raised_and_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    pieces = itertools.count()
    failed = threading.Event()

    def new_worker() -> Callable[[int], None]:
        def do(piece: int) -> None:
            assert torch.get_num_threads() == 1
            if piece == 5:
                failed.set()
                raise ValueError("five")

        return do

    with pytest.raises(ValueError, match="five"):
        share_out(pieces, 3, new_worker)
    assert failed.is_set()
    # Pieces have no end: that this line is reached says that the others stopped.
    assert torch.get_num_threads() == before
