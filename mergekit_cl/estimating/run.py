"""`clmerge fisher` step by step: rows, model, batches, sidecar. Read it top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import Interrupted
from mergekit_cl.estimating.calibrate import check_base, check_meaning, describe, measure
from mergekit_cl.estimating.company import Company, company
from mergekit_cl.estimating.exclusions import check_options
from mergekit_cl.estimating.failing import estimator_errors
from mergekit_cl.estimating.identity import describe_run, is_same
from mergekit_cl.estimating.keeping import kept_or_discarded
from mergekit_cl.estimating.place import (
    check_replaceable,
    clear_staging,
    existing_sidecar,
    open_staging,
    sidecar_files,
    sidecar_target,
)
from mergekit_cl.estimating.prepare import Ready, choose_rows, prepare
from mergekit_cl.estimating.publish import describe_estimate, publish_estimate
from mergekit_cl.estimating.request import FisherOutcome, FisherRequest
from mergekit_cl.estimating.sampling import describe_sampling, only
from mergekit_cl.estimating.state import Kept, absorb_states, kept_in, load_state, save_state
from mergekit_cl.estimating.streaming import stream_estimate
from mergekit_cl.interrupts import deferred_interrupts
from mergekit_cl.output.target import check_room
from mergekit_cl.report.progress import Start

if TYPE_CHECKING:
    from fisher.accumulator import Accumulator
    from mergekit_cl.training.choose import Choice
    from mergekit_cl.training.encode import Encoded

SECONDS_BETWEEN_SAVES = 30.0
Tell = Callable[[str], None]


def run_fisher(request: FisherRequest, progress: Start, tell: Tell) -> FisherOutcome:
    """Estimate a model's Fisher and publish its sidecar.

    progress: (title, total, unit) -> advance. tell: for what people should know on the way.
    Raises InputError, DataError or OptionError before anything is computed where that is possible.
    """
    with company(request.device) as among:
        check_options(request, among.place.world)
        if among.leads:
            return _lead(request, among, progress, tell)
        return _follow(request, among, progress)


def _follow(request: FisherRequest, among: Company, progress: Start) -> FisherOutcome:
    """The part of a process that only adds up its share of the rows."""
    with open_checkpoint(request.model) as checkpoint:
        request.selection.check(checkpoint)
        choice = choose_rows(request)
        if (state := among.exchange()[0]) is None:
            ready = prepare(request, checkpoint, choice)
            among.exchange()
            kept = Kept.told(among.exchange()[0])
            _, used = _accumulate(request, checkpoint, ready, kept, among, progress, lambda _: None)
            if request.base is not None:
                with open_checkpoint(request.base) as base:
                    measure(request, base, ready.built, used, ready.batch_size, among, progress)
            state = "published"
        return FisherOutcome(request.target or checkpoint.side_folder, state, {}, (), 0.0, 0)


def _lead(request: FisherRequest, among: Company, progress: Start, tell: Tell) -> FisherOutcome:
    started = time.perf_counter()
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(request.model))
        base = None
        if request.base is not None:
            base = stack.enter_context(open_checkpoint(request.base))
            check_base(checkpoint, base)
        request.selection.check(checkpoint)
        target = sidecar_target(checkpoint, request.target)
        choice = choose_rows(request)
        digests = checkpoint_digests(checkpoint)
        described = describe_run(request, checkpoint, choice, digests, base)
        existing = existing_sidecar(target)
        if existing is not None and is_same(existing, described):
            among.exchange("up to date")
            clear_staging(target, described)
            return FisherOutcome(
                target, "up to date", existing.metadata, (), 0.0, existing.checkpoint.nbytes
            )
        check_replaceable(target, existing, checkpoint, described["weights_digest"], request)
        among.exchange()
        ready = prepare(request, checkpoint, choice)
        built, encoded = ready.built, ready.encoded
        if base is not None:
            check_meaning(checkpoint, base, built.kind, encoded)
        if ready.weights is not None:
            written, single = stream_estimate(
                request,
                checkpoint,
                built,
                ready.weights,
                encoded,
                ready.estimator,
                ready.batch_size,
                described,
                digests,
                target,
                sidecar_files(existing),
                progress,
                tell,
            )
            notes = _notes(request, choice, encoded, single)
            return _outcome(request, target, written, notes, started)
        check_room(target, checkpoint.nbytes)
        among.exchange()
        staging = open_staging(target, {**described, "batch_size": ready.batch_size}, request)
        with kept_or_discarded(staging):
            kept = kept_in(staging.place)
            among.exchange(kept.to_tell())
            accumulator, used = _accumulate(request, checkpoint, ready, kept, among, progress, tell)
            estimate = accumulator.finish()
            metadata = describe_estimate(request, checkpoint, built, encoded, estimate, described)
            metadata["sampling"] = describe_sampling(
                examples=estimate.examples,
                asked=request.samples,
                error=accumulator.relative_error(),
                target=request.target_se,
            )
            notes = _notes(request, choice, encoded, accumulator.single_because)
            del accumulator  # a base needs the room of its sums
            if base is not None:
                found = measure(request, base, built, used, ready.batch_size, among, progress)
                metadata |= describe(*found, estimate, built)
            written = publish_estimate(
                request,
                checkpoint,
                built,
                estimate,
                metadata,
                digests,
                staging,
                sidecar_files(existing),
            )
        return _outcome(request, target, written, notes, started)


def _outcome(
    request: FisherRequest,
    target: Path,
    written: dict[str, Any],
    notes: tuple[str, ...],
    started: float,
) -> FisherOutcome:
    count = sum(entry["count"] for entry in written["tensors"].values())
    nbytes = count * (2 if request.store_dtype == "BF16" else 4)
    seconds = time.perf_counter() - started
    return FisherOutcome(target, "published", written, notes, seconds, nbytes)


def _accumulate(
    request: FisherRequest,
    checkpoint: Checkpoint,
    ready: Ready,
    kept: Kept,
    among: Company,
    progress: Start,
    tell: Tell,
) -> tuple[Accumulator, Encoded]:
    """Every batch into the sums, from where an interrupted run stopped.

    Gives the rows that are in them, too: all, or as many as the asked standard error took.
    """
    from fisher.accumulator import Accumulator
    from mergekit_cl.report.amounts import duration

    built, encoded = ready.built, ready.encoded

    def counts(parameter: str) -> bool:
        return any(name in request.selection for name in built.files_of(parameter))

    rank, world = among.place.rank, among.place.world
    saved = kept.file(rank)
    kept.check_seen(rank)
    with estimator_errors(request, checkpoint):
        accumulator = Accumulator(
            built.model,
            estimator=ready.estimator,
            draws=request.draws,
            seed=request.seed,
            include=counts,
        )
        held = load_state(saved, accumulator) if rank in kept.ranks else []
        left = among.share([row for row in encoded.rows if row.id not in kept.rows])
        total = len(left)
        advance = progress("fisher", len(held) + total, "rows")
        advance(len(held))
        began = told = time.perf_counter()
        batches = ready.stages.batches(ready.batch_size, {row.id for row in left})
        for number, batch in enumerate(batches):
            if ready.stages.enough(accumulator.examples, accumulator.relative_error()):
                break
            with deferred_interrupts() as caught:
                accumulator.add(batch)
                held += batch.row_ids
                total -= len(batch)
                advance(len(batch))
                now = time.perf_counter()
                if number == 0 and total:
                    expected = duration((now - began) / len(batch) * total)
                    tell(f"about {expected} left for {total} rows, judged by the first batch")
                stop = caught() or among.interrupted()
                if stop or now - told > SECONDS_BETWEEN_SAVES:
                    save_state(saved, accumulator, held)
                    told = time.perf_counter()
                if stop:
                    raise Interrupted(stop)
        if request.base is not None:  # an interruption while calibrating keeps the sums
            save_state(saved, accumulator, held)
        try:
            among.exchange()
        except Interrupted:
            save_state(saved, accumulator, held)
            raise
        if among.leads:
            absorb_states([kept.file(other) for other in kept.ranks if other >= world], accumulator)
        among.add_up(accumulator)
    return accumulator, encoded if request.target_se is None else only(encoded, held)


def _notes(
    request: FisherRequest, choice: Choice, encoded: Encoded, single_because: str | None
) -> tuple[str, ...]:
    notes = []
    if len(choice.rows) < request.samples:
        notes.append(f"only {len(choice.rows)} different rows, {request.samples} were asked for")
    if encoded.truncated:
        notes.append(f"{encoded.truncated} rows were cut at {encoded.max_length} tokens")
    if encoded.dropped:
        notes.append(f"{encoded.dropped} rows have no token to predict and were left out")
    if single_because is not None:
        notes.append(f"rows were taken one at a time: {single_because}")
    return tuple(notes)
