"""Identical threads that take pieces of work in order until none is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Piece = TypeVar("Piece")


def share_out(
    pieces: Iterable[Piece], workers: int, new_worker: Callable[[], Callable[[Piece], None]]
) -> None:
    """Let `workers` threads do all pieces; new_worker makes what one of them does with a piece.

    torch computes on one thread in each meanwhile. Raises what the first of them raises, after
    every one has stopped.
    """
    import torch

    left = iter(pieces)
    lock = threading.Lock()
    stop = threading.Event()

    def taken() -> Iterator[Piece]:
        while True:
            with lock:
                if stop.is_set():
                    return
                try:
                    piece = next(left)
                except StopIteration:
                    return
            yield piece

    def work() -> None:
        do = new_worker()
        for piece in taken():
            do(piece)

    threads_of_torch = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work) for _ in range(workers)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        for future in futures:
            future.result()
    finally:
        torch.set_num_threads(threads_of_torch)
