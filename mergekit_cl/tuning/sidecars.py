"""The Fisher sidecar beside what a run wrote, so that the next merge needs no other option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.estimating.identity import describe_run
from mergekit_cl.estimating.publish import describe_estimate, standard_errors
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.estimating.sampling import describe_sampling
from mergekit_cl.estimating.store import store
from mergekit_cl.tuning.importance import choose_rows, estimate_fisher, samples_of
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.session import Session
from mergekit_cl.tuning.writing import SHARD_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def take_rounded(live: Live, tensors: Mapping[str, Tensor]) -> None:
    """Give the model the weights as they were written: a sidecar belongs to those.

    tensors: {file tensor: values}. The run's own weights are in its state by now.
    """
    direct = live.tuned.built.map.direct
    with torch.no_grad():
        for name, parameter in live.tuned.module.named_parameters():
            if name in direct and direct[name] in tensors and not hasattr(parameter, "to_local"):
                parameter.copy_(tensors[direct[name]].view(parameter.shape))


def write_sidecar(session: Session, live: Live, side: Path, weights: Checkpoint) -> None:
    """Estimate the Fisher of the model as it was written, and store it in the folder `side`.

    On rows of all tasks of the run together. weights: the checkpoint it belongs to: what was
    written, or for an adapter the model that it is for, as `clmerge fisher --adapter` has it. By
    all processes; the first one writes.
    """
    rows = {name: row for task in session.tasks for name, row in task.train.items()}
    choice = choose_rows(session, rows.values())
    estimate, encoded = estimate_fisher(session, live, choice, everything=True, title="fisher")
    if session.engine.sharded:
        from fisher.distributed import gathered

        estimate = gathered(estimate)
    if not session.engine.leads:
        return
    config = session.config
    request = FisherRequest(
        model=str(weights.path),
        data=tuple(path for task in config.task for path in task.data),
        adapter=side.parent if live.tuned.adapted else None,
        estimator=None if config.ewc is None else config.ewc.estimator,
        samples=samples_of(session),
        max_length=config.batch.max_length,
        seed=config.seed,
    )
    digests = checkpoint_digests(weights)
    described = describe_run(request, weights, choice, digests)
    built = live.tuned.built
    metadata = describe_estimate(request, weights, built, encoded, estimate, described)
    metadata["sampling"] = describe_sampling(
        examples=estimate.examples, asked=request.samples, error=None, target=None
    )
    errors = standard_errors(built, estimate)
    tensors = {
        name: {"digest": digests[name], "standard_error": errors.get(name)}
        for name in weights.tensors
    }
    layout, _ = store(
        side,
        weights,
        built.by_file(estimate.diagonal),
        metadata,
        tensors,
        dtype=request.store_dtype,
        stem="fisher",
        shard_size=SHARD_SIZE,
    )
    assert layout.shards
