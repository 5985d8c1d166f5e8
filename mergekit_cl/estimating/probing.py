"""How long a Fisher will take and what a batch of it keeps, from running one batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_cl.estimating.prepare import Ready
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.training.labels import class_names

if TYPE_CHECKING:
    import torch

    from fisher.batch import Batch


@dataclass(frozen=True)
class Probe:
    """seconds: expected for all rows. activations: bytes that one batch keeps for the way back."""

    seconds: float
    activations: int


def probe_batch(request: FisherRequest, ready: Ready, processes: int) -> Probe:
    """Estimate from the first batch, which has the longest rows; nothing is written.

    With a base, its forward pass is taken to last as long as the model's.
    """
    import torch

    from fisher.accumulator import Accumulator
    from fisher.keeping import kept_for_backward

    built, batch = ready.built, _first(ready)
    accumulator = Accumulator(
        built.model,
        estimator=ready.estimator,
        draws=request.draws,
        seed=request.seed,
        include=lambda parameter: _counts(request, ready, parameter),
    )
    accumulator.add(batch.row(0))  # what is looked at once, and woken up, is not timed
    device = next(built.model.parameters()).device
    began = _settled(device)
    with kept_for_backward() as keeping:
        keeping.leave_out(built.model.parameters())
        accumulator.add(batch)
    seconds = _settled(device) - began
    if request.base is not None:
        began = _settled(device)
        with torch.no_grad():
            built.model(**batch.to(device).inputs)
        seconds += 2 * (_settled(device) - began)
    batches = _batches_like(batch, ready) / processes
    together = accumulator.single_because is None
    return Probe(seconds * batches, keeping.peak + _at_outputs(batch, ready, together))


def probe_layer(request: FisherRequest, ready: Ready) -> Probe:
    """The same of a model whose layers are streamed, from one of them.

    Raises StackError for a model that cannot be.
    """
    from fisher.layered.trial import try_layer

    assert ready.weights is not None
    batch = _first(ready)
    trial = try_layer(
        ready.built.model,
        batch,
        ready.weights,
        ready.weights.device,
        estimator=ready.estimator,
        draws=request.draws,
        seed=request.seed,
        include=lambda parameter: _counts(request, ready, parameter),
    )
    seconds = trial.expected(_batches_like(batch, ready))
    return Probe(seconds, trial.kept + _at_outputs(batch, ready, together=True))


def _first(ready: Ready) -> Batch:
    return next(ready.encoded.batches(ready.batch_size))


def _counts(request: FisherRequest, ready: Ready, parameter: str) -> bool:
    return any(name in request.selection for name in ready.built.files_of(parameter))


def _batches_like(batch: Batch, ready: Ready) -> float:
    """All rows in batches like this one, by the positions that are computed."""
    every = sum(b.inputs["input_ids"].numel() for b in ready.encoded.batches(ready.batch_size))
    return every / batch.inputs["input_ids"].numel()


def _at_outputs(batch: Batch, ready: Ready, together: bool) -> int:
    """Bytes of the logits, and of the probabilities that become the gradient there."""
    config: Any = ready.built.model.config
    if ready.built.kind == "classifier":
        width = len(class_names(config.to_dict()))
    else:
        width = int(config.get_text_config().vocab_size)
    rows = batch.labels if together else batch.labels[:1]
    return 2 * rows.numel() * width * ready.built.dtype.itemsize


def _settled(device: torch.device) -> float:
    """Now, when the device has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
