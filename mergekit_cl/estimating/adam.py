"""A sidecar from what Adam kept of a training: no rows, no passes, and another meaning.

The running mean of squared BATCH gradients is no Fisher information: its scale depends on the batch
size, and it is recorded as what it is (docs/mathematics.md, "Estimators").
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.dtypes import long_name, safetensors_dtype
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import OptionError
from mergekit_cl.estimating.identity import is_same
from mergekit_cl.estimating.keeping import kept_or_discarded
from mergekit_cl.estimating.place import (
    check_replaceable,
    clear_staging,
    existing_sidecar,
    open_staging,
    sidecar_files,
    sidecar_target,
)
from mergekit_cl.estimating.publish import publish_values, whole_missing
from mergekit_cl.estimating.request import FisherOutcome, FisherRequest
from mergekit_cl.manifest import versions
from mergekit_cl.output.target import check_room

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_cl.training.model import BuiltModel
    from mergekit_cl.training.moments import Moment


def run_adam(request: FisherRequest) -> FisherOutcome:
    """Publish the bias-corrected second moments of `request.optimizer` as a model's sidecar.

    Raises InputError where the file holds no Adam, MismatchError where it trained another model.
    """
    from mergekit_cl.training.moments import moments, read_optimizer
    from mergekit_cl.training.parameter_order import by_name

    _check_options(request)
    assert request.optimizer is not None
    started = time.perf_counter()
    where = request.optimizer
    saved = read_optimizer(where)
    found = moments(saved, where)
    with open_checkpoint(request.model) as checkpoint:
        request.selection.check(checkpoint)
        target = sidecar_target(checkpoint, request.target)
        built = _build(checkpoint)
        placed = by_name(saved, found, built.model, where)
        digests = checkpoint_digests(checkpoint)
        described = _identity(request, checkpoint, digests, placed)
        existing = existing_sidecar(target)
        if existing is not None and is_same(existing, described):
            nbytes = existing.checkpoint.nbytes
            clear_staging(target, described)
            return FisherOutcome(target, "up to date", existing.metadata, (), 0.0, nbytes)
        check_replaceable(target, existing, checkpoint, described["weights_digest"], request)
        check_room(target, checkpoint.nbytes)
        staging = open_staging(target, described, request)
        with kept_or_discarded(staging):
            written = publish_values(
                request,
                checkpoint,
                _by_file(built, placed),
                {**described, **_metadata(request, checkpoint, built, placed)},
                {name: {"digest": digests[name]} for name in checkpoint.tensors},
                staging,
                sidecar_files(existing),
            )
        count = sum(entry["count"] for entry in written["tensors"].values())
        size = 2 if request.store_dtype == "BF16" else 4
        seconds = time.perf_counter() - started
        return FisherOutcome(target, "published", written, (), seconds, count * size)


def _check_options(request: FisherRequest) -> None:
    options = {
        "--data": request.data,
        "--adapter": request.adapter,
        "--base": request.base,
        "--target-se": request.target_se,
    }
    if given := next((name for name, value in options.items() if value), None):
        raise OptionError(
            "a saved optimizer is read as it is",
            detail=f"--estimator adam with {given}",
            hint=f"leave out {given}, or --estimator adam",
        )


def _build(checkpoint: Checkpoint) -> BuiltModel:
    import torch

    from mergekit_cl.training.model import build

    return build(checkpoint, dtype=torch.float32)


def _identity(
    request: FisherRequest,
    checkpoint: Checkpoint,
    digests: Mapping[str, str],
    placed: Mapping[str, Moment],
) -> dict[str, Any]:
    """Everything that decides the sidecar's values."""
    entries = [(t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()]
    return {
        "weights_digest": weights_digest(entries),
        "optimizer": {
            "digest": _moments_digest(placed),
            "steps": int(max(moment.step for moment in placed.values())),
            "beta2": sorted({moment.beta2 for moment in placed.values()}),
        },
        "options": {
            "estimator": "adam",
            "store_dtype": long_name(request.store_dtype),
            "include": list(request.selection.include),
            "exclude": list(request.selection.exclude),
        },
    }


def _moments_digest(placed: Mapping[str, Moment]) -> str:
    from blake3 import blake3

    from mergekit_cl.checkpoint.arrays import as_bytes

    entries = []
    for name, moment in placed.items():
        values = moment.values.contiguous().reshape(-1)
        digest = blake3(bytes(as_bytes(values))).hexdigest()
        said = f"{digest} {moment.step:g} {moment.beta2!r}"
        shape = tuple(moment.values.shape)
        entries.append((name, safetensors_dtype(values.dtype), shape, said))
    return weights_digest(entries)


def _by_file(built: BuiltModel, placed: Mapping[str, Moment]) -> Iterator[tuple[str, Tensor]]:
    return built.by_file({name: moment.corrected() for name, moment in placed.items()})


def _metadata(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    placed: Mapping[str, Moment],
) -> dict[str, Any]:
    unmoved = {name: "frozen" for name, _ in built.model.named_parameters() if name not in placed}
    return {
        "estimator": "adam",
        "level": "batch",
        "unit": "optimizer",
        "examples": 0,
        "tokens": 0,
        "mean_nll": None,
        "missing": whole_missing(request, checkpoint, built, unmoved),
        "tied": dict(built.tied),
        "calibration": None,
        "versions": versions(),
    }
