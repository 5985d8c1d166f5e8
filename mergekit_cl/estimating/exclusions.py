"""Options of `clmerge fisher` that exclude each other, told before a byte is read."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_cl.errors import OptionError
from mergekit_cl.estimating.request import FisherRequest


def check_options(request: FisherRequest, processes: int) -> None:
    """Raise OptionError for what cannot be done together, or not by several processes."""
    for error in _excluded(request, processes):
        raise error


def _excluded(request: FisherRequest, processes: int) -> Iterator[OptionError]:
    if request.target_se is not None and processes > 1:
        yield OptionError(
            "one process alone can tell when it knows enough",
            detail=f"--target-se {request.target_se} with {processes} processes",
            hint="leave out torchrun, or give --samples instead of --target-se",
        )
    if not request.stream_layers:
        return
    if processes > 1:
        yield OptionError(
            "layers are streamed by one process",
            detail=f"--stream-layers with {processes} processes",
            hint="leave out torchrun, or --stream-layers where each process can hold the model",
        )
    if request.adapter is not None:
        yield OptionError(
            "an adapter is added to all weights at once, not layer by layer",
            detail=f"--stream-layers with --adapter {request.adapter}",
            hint=f"clmerge lora-merge {request.model} {request.adapter}, then clmerge fisher "
            "merged --stream-layers; or leave out --stream-layers",
        )
    if request.base is not None:
        yield OptionError(
            "a base is compared with the whole model in memory",
            detail=f"--stream-layers with --base {request.base}",
            hint="leave out --base: the Fisher is the same without, only not calibrated",
        )
    if request.target_se is not None:
        yield OptionError(
            "streamed rows all pass a layer before the next, so none can be the last early",
            detail=f"--stream-layers with --target-se {request.target_se}",
            hint="give --samples instead: the end tells how sure it is",
        )
