"""Identical threads that take pieces of work in order until none is left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

Piece = TypeVar("Piece")


def share_out(
    pieces: Iterable[Piece], workers: int, new_worker: Callable[[], Callable[[Piece], None]]
) -> None:
    """Let `workers` threads do all pieces; new_worker makes what one of them does with a piece.

    torch, where it is loaded, computes on one thread in each meanwhile. Raises what the first of
    them raises, after every one has stopped.
    """
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

    with _torch_on_one_thread(), ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
