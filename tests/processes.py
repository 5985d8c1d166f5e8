"""Several gloo processes on this machine, as a launcher would start them."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

LOADED = ("torch.distributed", "torch.nn.parallel", "transformers.modeling_utils")


def together(world: int, work: Callable[..., Any], place: Path, *given: Any) -> list[Any]:
    """What `work(rank, *given)` returns in each of `world` processes of one gloo group."""
    # Forked from a process that has loaded what takes seconds, and has no threads.
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(LOADED))
    multiprocessing.start_processes(
        _run, (world, work, place, given), nprocs=world, join=True, start_method="forkserver"
    )
    return [torch.load(place / f"{rank}.pt", weights_only=False) for rank in range(world)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _run(
    rank: int, world: int, work: Callable[..., Any], place: Path, given: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    store = dist.FileStore(str(place / "store"), world)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(minutes=2)
    )
    torch.save(work(rank, *given), place / f"{rank}.pt")
    dist.destroy_process_group()
