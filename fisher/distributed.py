"""One Fisher from the sums of several processes, each of which took its own rows.

Every process runs the whole model, or its part of one that FSDP2 (`fully_shard`) keeps in shards.
Sums of squares are additive, so there is one reduction, at the end. A Fisher diagonal then lies as
its weight does: whole in every process, or in the weight's shards.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, Partial

from fisher.accumulator import Accumulator, Estimate
from fisher.errors import StateError
from fisher.meeting import Meeting

TIMEOUT = timedelta(minutes=10)


def join(*, cuda: bool) -> Meeting:
    """Join the processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of.

    cuda: whether tensors lie on GPUs, which nccl adds up; gloo does it on the CPU. Raises
    torch.distributed.DistError where the others do not come.
    """
    store, rank, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("collectives", store),
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    return Meeting(PrefixStore("meeting", store), rank, world)


def reduce_sums(accumulator: Accumulator) -> None:
    """Put the sum over all processes in place of each one's own; nothing can be added after that.

    A collective: every process of the default group calls it. Squares of a sharded parameter end
    in its shards. Raises StateError where the processes estimate different things.
    """
    _, numbers = accumulator.state()
    everyone: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, numbers)
    together = combined(everyone, fixed=accumulator.settings())
    accumulator.map_squares(_summed)
    tensors, _ = accumulator.state()
    for name, tensor in tensors.items():
        if not name.startswith("square."):
            dist.all_reduce(tensor)
    accumulator.restore(tensors, together)


def combined(numbers: Sequence[Mapping[str, Any]], *, fixed: Collection[str]) -> dict[str, Any]:
    """The numbers of `Accumulator.state` from several accumulators as those of one.

    fixed: keys that must agree. Counts and sums add up, a flag is set where any is, and of what may
    be None the first that is not counts. Raises StateError.
    """
    found: dict[str, Any] = {}
    for key, first in numbers[0].items():
        values: list[Any] = [each.get(key) for each in numbers]
        if key in fixed:
            if any(value != first for value in values):
                raise StateError(f"processes differ in {key}: {values}")
            found[key] = first
        elif isinstance(first, bool):
            found[key] = any(values)
        elif isinstance(first, int):
            found[key] = sum(values)
        elif isinstance(first, float):
            found[key] = math.fsum(values)
        else:
            found[key] = next((value for value in values if value is not None), None)
    return found


def gathered(estimate: Estimate) -> Estimate:
    """The estimate with every diagonal whole, in every process; a collective.

    To save shard by shard instead, give `estimate.diagonal` to `torch.distributed.checkpoint.save`.
    """
    diagonal = {
        name: values.full_tensor() if isinstance(values, DTensor) else values
        for name, values in estimate.diagonal.items()
    }
    return replace(estimate, diagonal=diagonal)


def _summed(total: Tensor, weight: torch.nn.Parameter) -> Tensor:
    """Each process's (whole) sum of squares -> the sum of all, laid out as the weight."""
    if not isinstance(weight, DTensor):
        dist.all_reduce(total)
        return total
    mesh = weight.device_mesh
    parts = DTensor.from_local(total, mesh, [Partial()] * mesh.ndim, run_check=False)
    return parts.redistribute(placements=weight.placements)
