"""`clmerge fisher --stream-layers`: the same estimate, one layer at a time, from disk to disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.errors import (
    OptionError,
)
from mergekit_cl.estimating.failing import estimator_errors
from mergekit_cl.estimating.keeping import kept_or_discarded
from mergekit_cl.estimating.parts import LONGEST, SidecarParts
from mergekit_cl.estimating.place import open_staging
from mergekit_cl.estimating.publish import describe_estimate, move_into_place, standard_errors
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.estimating.sampling import describe_sampling
from mergekit_cl.estimating.streams import Streams, streams
from mergekit_cl.memory import give_back_freed
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import check_room
from mergekit_cl.report.amounts import duration
from mergekit_cl.report.progress import Start

if TYPE_CHECKING:
    import torch

    from fisher.accumulator import Estimate
    from fisher.layered.boundaries import Boundaries
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel
    from mergekit_cl.training.skeleton import Weights


def build_to_stream(
    request: FisherRequest, checkpoint: Checkpoint, device: torch.device, pad_id: int
) -> tuple[BuiltModel, Weights]:
    """The model without its weights; raises InputError where it cannot be taken layer by layer."""
    from mergekit_cl.training.skeleton import build_skeleton

    dtype = torch_dtype(request.compute_dtype)
    with estimator_errors(request, checkpoint):
        return build_skeleton(checkpoint, dtype=dtype, device=device, pad_id=pad_id)


def backward_passes(request: FisherRequest, checkpoint: Checkpoint, estimator: str) -> int:
    """How often each batch goes back through the model."""
    from mergekit_cl.training.labels import class_names

    return len(class_names(checkpoint.config or {})) if estimator == "exact" else request.draws


def check_stream_memory(request: FisherRequest, needs: Streams) -> None:
    """Raise OptionError where the memory limit is below what is held at once."""
    if request.memory is not None and needs.memory > request.memory:
        raise OptionError(
            "the memory limit is below what one layer takes",
            detail=f"--memory {request.memory}: {needs.memory} bytes are needed",
            hint="give more, a smaller --batch-size, or --compute-dtype bfloat16",
        )


def stream_estimate(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    weights: Weights,
    encoded: Encoded,
    estimator: str,
    batch_size: int,
    described: dict[str, Any],
    digests: dict[str, str],
    target: Path,
    replaced: list[Path],
    progress: Start,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], str | None]:
    """Estimate, write and publish; gives the metadata, and why rows were taken one at a time.

    Continues after the last layer that an interrupted run finished.
    """
    passes = backward_passes(request, checkpoint, estimator)
    needs = streams(built, encoded, batch_size, passes, request.store_dtype)
    check_stream_memory(request, needs)
    check_room(target, needs.written + needs.on_disk)
    identity = {**described, "batch_size": batch_size, "stream_layers": True}
    staging = open_staging(target, identity, request)
    run = _Run(request, checkpoint, built, weights, encoded, estimator, batch_size)
    with kept_or_discarded(staging), closing(run):
        estimate, error, single = run.estimate(described, digests, staging, needs, progress, tell)
        metadata = _described(request, checkpoint, built, encoded, estimate, error, described)
        errors = standard_errors(built, estimate)
        layout, whole = run.parts().finish(
            metadata,
            {
                name: {"digest": digests[name], "standard_error": errors.get(name), **found}
                for name, found in run.statistics.items()
            },
        )
        move_into_place(layout, staging, replaced)
        return whole, single


class _Run:
    """What the passes of one run share. statistics: of the tensors that are in their place."""

    def __init__(
        self,
        request: FisherRequest,
        checkpoint: Checkpoint,
        built: BuiltModel,
        weights: Weights,
        encoded: Encoded,
        estimator: str,
        batch_size: int,
    ) -> None:
        self.statistics: dict[str, dict[str, Any]] = {}
        self._request, self._checkpoint, self._built = request, checkpoint, built
        self._weights, self._encoded = weights, encoded
        self._estimator, self._batch_size = estimator, batch_size
        self._parts: SidecarParts | None = None

    def parts(self) -> SidecarParts:
        """The files being written."""
        assert self._parts is not None
        return self._parts

    def close(self) -> None:
        """Close them."""
        if self._parts is not None:
            self._parts.close()

    def estimate(
        self,
        described: dict[str, Any],
        digests: dict[str, str],
        staging: Staging,
        needs: Streams,
        progress: Start,
        tell: Callable[[str], None],
    ) -> tuple[Estimate, float | None, str | None]:
        """All passes, from where an interrupted run stopped.

        Gives the trace's relative standard error, and why rows were taken one at a time, too.
        """
        from fisher.layered.boundaries import InFiles, InMemory
        from fisher.streamed import Streamed, Ways

        recorded = staging.journal.read()
        for entry in recorded:
            self.statistics.update(entry.get("statistics", {}))
        activations: Boundaries = (
            InMemory() if needs.in_memory else InFiles(staging.place / "activations")
        )
        done = [entry for entry in recorded if "done" in entry]
        advance = _Advance(progress, tell if not done else lambda _: None)

        def finish(name: str, diagonal: Any) -> None:
            give_back_freed()
            found = self.parts().write(self._built.by_file(diagonal))
            self.statistics.update(found)
            staging.journal.append({"part": name, "statistics": found})

        with estimator_errors(self._request, self._checkpoint):
            streamed = Streamed(
                self._built.model,
                lambda: self._encoded.batches(self._batch_size),
                Ways(
                    self._weights,
                    finish,
                    activations,
                    InFiles(staging.place / "gradients"),
                    staging.journal.append,
                    done,
                    advance,
                ),
                device=self._weights.device,
                estimator=self._estimator,
                draws=self._request.draws,
                seed=self._request.seed,
                include=self._counts,
            )
            self._plan(streamed.outlook(), described, digests, staging)
            advance.start(streamed.steps, len(self._encoded.rows))
            return streamed.run(), streamed.relative_error(), streamed.single_because

    def _counts(self, parameter: str) -> bool:
        return any(name in self._request.selection for name in self._built.files_of(parameter))

    def _plan(
        self,
        outlook: Estimate,
        described: dict[str, Any],
        digests: dict[str, str],
        staging: Staging,
    ) -> None:
        """Give every tensor its place, from headers and what is known of the estimate."""
        built, request = self._built, self._request
        empty = {name: built.model.get_parameter(name) for name in outlook.standard_error}
        given = {name for name, _ in built.by_file(empty)}
        names = [n for n in self._checkpoint.tensors if n in given and n in request.selection]
        self._parts = SidecarParts(
            staging.out,
            self._checkpoint,
            names,
            _described(
                request, self._checkpoint, built, self._encoded, outlook, LONGEST, described
            ),
            {name: {"digest": digests[name], "standard_error": LONGEST} for name in names},
            dtype=request.store_dtype,
            stem=staging.target.name.removesuffix(".safetensors"),
            shard_size=request.shard_size,
        )


class _Advance:
    """Shows how far a run is, and after its second layer how long the others will take.

    The first one's time holds what is looked at once.
    """

    def __init__(self, progress: Start, tell: Callable[[str], None]) -> None:
        self._progress, self._tell = progress, tell
        self._done = 0

    def start(self, steps: int, rows: int) -> None:
        """Begin to count to `steps`, of which each layer's pass takes `rows`."""
        self._count = self._progress("fisher", steps, "layer rows")
        self._steps, self._rows, self._began = steps, rows, 0.0

    def __call__(self, rows: int) -> None:
        self._count(rows)
        self._done += rows
        if self._done == self._rows:
            self._began = time.perf_counter()
        elif self._done == 2 * self._rows and self._steps > 3 * self._rows:
            layers = (self._steps // self._rows - 1) // 2
            # Back is forward once more, and the gradients of inputs and of weights.
            left = (time.perf_counter() - self._began) * (4 * layers - 2)
            self._tell(f"about {duration(left)} left for {layers} layers, judged by the second")


def _described(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    encoded: Encoded,
    estimate: Estimate,
    error: float | None,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The sidecar's metadata; error: relative standard error of the trace."""
    sampling = describe_sampling(
        examples=estimate.examples, asked=request.samples, error=error, target=None
    )
    known = describe_estimate(request, checkpoint, built, encoded, estimate, described)
    return {**known, "sampling": sampling}
