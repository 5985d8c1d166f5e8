"""What `clmerge fisher --dry-run` finds out, without writing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.estimating.calibrate import check_base
from mergekit_cl.estimating.exclusions import check_options
from mergekit_cl.estimating.failing import estimator_errors
from mergekit_cl.estimating.place import check_memory, memory_needed, sidecar_target
from mergekit_cl.estimating.prepare import (
    choose_rows,
    device_of,
    prepare,
)
from mergekit_cl.estimating.probing import Probe, probe_batch, probe_layer
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.estimating.streaming import backward_passes, check_stream_memory
from mergekit_cl.estimating.streams import Streams, streams
from mergekit_cl.launched import launched
from mergekit_cl.memory import available_bytes
from mergekit_cl.report.amounts import size


def plan_fisher(request: FisherRequest, tell: Callable[[str], None]) -> dict[str, Any]:
    """The plan as one JSON document (docs/commands.md, "JSON on stdout").

    `adam` runs no rows, so its plan comes from headers. Otherwise the data is read, the model built
    and one batch computed, unless there is too little memory for that. Refuses what the run would.
    """
    processes = launched().world
    if request.optimizer is None:
        check_options(request, processes)
    with open_checkpoint(request.model) as checkpoint:
        request.selection.check(checkpoint)
        plan = _from_headers(request, checkpoint)
        if request.optimizer is not None:
            return plan
        if request.base is not None:
            with open_checkpoint(request.base) as base:
                check_base(checkpoint, base)
        if not request.stream_layers:
            check_memory(request, checkpoint)
            if lacking := _lacking(request, plan["memory_bytes"]):
                return {**plan, "notes": [f"{lacking}; --stream-layers holds a layer at a time"]}
        tell("probing: the model is built and one batch computed; nothing is written")
        ready = prepare(request, checkpoint, choose_rows(request))
        passes = backward_passes(request, checkpoint, ready.estimator)
        plan |= {
            "rows": len(ready.encoded.rows),
            "batch_size": ready.batch_size,
            "passes": {"forward": 2 if request.stream_layers else 1, "backward": passes},
        }
        if not request.stream_layers:
            with estimator_errors(request, checkpoint):
                return plan | _probed(probe_batch(request, ready, processes))
        needs = streams(ready.built, ready.encoded, ready.batch_size, passes, request.store_dtype)
        check_stream_memory(request, needs)
        plan |= {"memory_bytes": needs.memory, "streaming": _streaming(needs)}
        if lacking := _lacking(request, needs.memory):
            return {**plan, "notes": [lacking]}
        with estimator_errors(request, checkpoint):
            return plan | _probed(probe_layer(request, ready))


def _from_headers(request: FisherRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    from mergekit_cl.training.files import find_files

    rows = request.optimizer is None
    if rows:
        find_files(request.data)
    chosen = [t for t in checkpoint.tensors.values() if t.is_float and t.name in request.selection]
    elements = sum(tensor.numel for tensor in chosen)
    return {
        "command": "fisher",
        "output": str(sidecar_target(checkpoint, request.target)),
        "tensors": len(chosen),
        "bytes_read": checkpoint.nbytes,
        "bytes_written": elements * (2 if request.store_dtype == "BF16" else 4),
        "memory_bytes": memory_needed(request, checkpoint),
        "activations_bytes": None if rows else 0,
        "rows_at_most": request.samples if rows else 0,
        "rows": None if rows else 0,
        "batch_size": request.batch_size,
        "passes": None if rows else {"forward": 0, "backward": 0},
        "expected_seconds": None,
        "streaming": None,
        "notes": [],
    }


def _probed(probe: Probe) -> dict[str, Any]:
    return {"activations_bytes": probe.activations, "expected_seconds": round(probe.seconds, 3)}


def _streaming(needs: Streams) -> dict[str, Any]:
    return {
        "layers": needs.layers,
        "layer_bytes": needs.layer,
        "outside_bytes": needs.outside,
        "boundary_bytes": needs.activations,
        "boundaries": "memory" if needs.in_memory else "files",
        "temporary_bytes": needs.on_disk,
    }


def _lacking(request: FisherRequest, needed: int) -> str | None:
    """Why there is no probe: more would be held than is free."""
    device = device_of(request)
    free = available_bytes()
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    if free is None or needed <= free:
        return None
    return f"not probed: {size(needed)} would be held and {size(free)} is free"
