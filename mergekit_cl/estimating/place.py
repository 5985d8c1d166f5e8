"""Where a sidecar goes and whether it may: decided before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.checkpoint.hub import HUB, fetch
from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path, shown
from mergekit_cl.errors import FormatError, OptionError, OutputError
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.output.staging import Staging
from mergekit_cl.sidecar import NAMES, Sidecar, open_sidecar


def sidecar_target(checkpoint: Checkpoint, given: Path | None) -> Path:
    """Where the sidecar goes; raises OutputError where the model's folder cannot be written."""
    if given is None and checkpoint.here is None:
        raise _unwritable(checkpoint, f"{checkpoint.side_place}/{NAMES[0]}")
    if given is not None and is_url(as_typed(given)):
        raise OptionError(
            "a sidecar is written to this disk",
            detail=f"-o {shown(as_typed(given))}",
            hint="-o fisher.safetensors, then copy it there",
        )
    target = given or checkpoint.side_folder / NAMES[0]
    if target.suffix != ".safetensors":
        raise OptionError(
            "a sidecar is a .safetensors file",
            detail=f"-o {target}",
            hint=f"-o {target}.safetensors",
        )
    if checkpoint.root == checkpoint.path and target.resolve().parent == checkpoint.root.resolve():
        raise OptionError(
            "a sidecar beside the weights would be read as weights",
            detail=f"-o {target}",
            hint=f"-o {checkpoint.side_folder / target.name}, or no -o at all",
        )
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise _unwritable(checkpoint, str(target))
    return target


def _unwritable(checkpoint: Checkpoint, target: str) -> OutputError:
    return OutputError(
        "the model's folder cannot be written to",
        detail=target,
        hint=f"clmerge fisher {checkpoint.path} --data ... -o fisher.safetensors, "
        "then clmerge fisher-merge ... --fisher fisher.safetensors",
    )


def adapter_folder(given: Path | None) -> Path | None:
    """The folder of an adapter on this disk; one on the hub is fetched.

    Raises OptionError for other places beyond this disk.
    """
    if given is None or not is_url(text := as_typed(given)):
        return given
    if text.startswith(HUB):
        return fetch(text)[0]
    here = local_path(text)
    if here is None:
        raise OptionError(
            "an adapter is read from this disk or from the hub",
            detail=f"--adapter {shown(text)}",
            hint="copy its folder here first, or hf://ORG/NAME",
        )
    return here


def existing_sidecar(target: Path) -> Sidecar | None:
    """The sidecar already at a place, whole or sharded; None where there is none that opens."""
    for path in (target, target.with_name(target.name + ".index.json")):
        if path.is_file():
            try:
                return open_sidecar(path)
            except FormatError:
                return None
    return None


def check_replaceable(
    target: Path,
    existing: Sidecar | None,
    checkpoint: Checkpoint,
    digest: str,
    request: FisherRequest,
) -> None:
    """Raise OutputError where something may not be replaced.

    A sidecar in the model's own folder whose weights are no longer there may; another one with
    --force; what is no sidecar never.
    """
    there = target if existing is None else Path(existing.checkpoint.path)
    if not there.exists():
        return
    if existing is None:
        raise OutputError(
            "what is there is no Fisher sidecar, so it is not replaced",
            detail=str(target),
            hint="choose another -o",
        )
    own = target.resolve().parent == checkpoint.side_folder.resolve()
    stale = existing.metadata.get("weights_digest") != digest
    if request.force or (own and stale):
        return
    raise OutputError(
        "the sidecar exists and was made with other options or data",
        detail=str(target),
        hint="add --force to replace it, or choose another -o",
    )


def open_staging(target: Path, identity: dict[str, Any], request: FisherRequest) -> Staging:
    """Take the temporary place beside the sidecar, or continue an unfinished run's."""
    staging = Staging(target, side_folder=target.parent)
    staging.open({"command": "fisher", **identity}, restart=request.restart)
    return staging


def clear_staging(target: Path, identity: dict[str, Any]) -> None:
    """Remove what a run that was killed right after it published left beside the sidecar.

    identity: as of `open_staging`, without the size of batches.
    """
    Staging(target, side_folder=target.parent).clear({"command": "fisher", **identity})


def memory_needed(request: FisherRequest, checkpoint: Checkpoint) -> int:
    """Bytes of weights and float32 sums, and of the base; activations come on top."""
    weights = sum(tensor.numel for tensor in checkpoint.tensors.values())
    models = 1 if request.base is None else 2
    return weights * (models * torch_dtype(request.compute_dtype).itemsize + 4)


def check_memory(request: FisherRequest, checkpoint: Checkpoint) -> None:
    """Raise OptionError where the memory limit is below `memory_needed`."""
    needed = memory_needed(request, checkpoint)
    if request.memory is not None and needed > request.memory:
        raise OptionError(
            "the memory limit is below what the weights and their Fisher take",
            detail=f"--memory {request.memory}: {needed} bytes are needed",
            hint="give more, or --compute-dtype bfloat16",
        )


def sidecar_files(sidecar: Sidecar | None) -> list[Path]:
    """Every file of a sidecar, its index included."""
    if sidecar is None:
        return []
    opened = sidecar.checkpoint
    return [Path(opened.path), *(file for file in opened.files if isinstance(file, Path))]
