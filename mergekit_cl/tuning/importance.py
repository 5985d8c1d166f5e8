"""The Fisher of the model at hand, by the estimator of `clmerge fisher`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from fisher.accumulator import Accumulator, Estimate
from mergekit_cl.errors import ClmergeError, DataError, MismatchError, NonFiniteError
from mergekit_cl.estimating.prepare import default_estimator
from mergekit_cl.training.choose import Choice, choose
from mergekit_cl.training.encode import Encoded, auto_batch_size
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.folding import folded, whole_weights
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.model import Tuned, file_name
from mergekit_cl.tuning.schema import Config, Estimator
from mergekit_cl.tuning.session import Session

if TYPE_CHECKING:
    from fisher.errors import FisherError

SAMPLES = 256
UNIT = "per_example"


def samples_of(session: Session) -> int:
    """Rows that a Fisher is taken on."""
    return SAMPLES if session.config.ewc is None else session.config.ewc.samples


def choose_rows(session: Session, rows: Iterable[Row]) -> Choice:
    """The rows a Fisher is taken on, as `clmerge fisher` would choose them."""
    return choose(rows, samples_of(session), session.config.seed)


def estimator_of(config: Config, tuned: Tuned) -> str:
    """By which a run takes Fishers."""
    asked = None if config.ewc is None else config.ewc.estimator
    return asked or default_estimator(tuned.built.kind, tuned.config)


def check_estimator(config: Config, live: Live) -> None:
    """Raise MismatchError where the run's Fishers would be added to others of another estimator."""
    mine = estimator_of(config, live.tuned)
    other = next((known for known, _ in live.fishers if known != mine), None)
    if config.ewc is None or other is None:
        return
    hint = f'ewc.estimator = "{other}"'
    if other not in get_args(Estimator):
        hint = f"clmerge fisher --estimator {mine} makes one that can be added to"
    raise MismatchError(
        "what is protected was estimated in another way than this run's Fishers, so their numbers "
        "do not add up",
        detail=f"{other} of earlier tasks, {mine} of these",
        hint=hint,
    )


def estimate_fisher(
    session: Session, live: Live, choice: Choice, *, everything: bool, title: str
) -> tuple[Estimate, Encoded]:
    """The Fisher diagonal at the model as it is, under the names of its parameters without adapter.

    everything: of an adapted model all weights, not only those that are moved. By all processes,
    each with its share of the rows. Raises NonFiniteError, in all processes, where the
    model's outputs are not finite, and DataError for rows that give no gradient.
    """
    from fisher.errors import FisherError

    engine, config = session.engine, session.config
    encoded = session.reader.encode(choice.rows, title)
    mine = encoded
    if engine.world > 1 and not engine.sharded:  # shards compute together, on all rows
        mine = replace(encoded, rows=encoded.rows[engine.rank :: engine.world])
    advance = session.progress(title, len(mine.rows), "rows")
    wanted = whole_weights(live.tuned, everything=everything)
    failed: FisherError | None = None
    with folded(live.tuned):
        try:
            accumulator = Accumulator(
                live.tuned.module,
                estimator=estimator_of(config, live.tuned),
                seed=config.seed,
                include=wanted.__contains__,
            )
            for batch in mine.batches(auto_batch_size(live.tuned.built.parameters, mine.longest)):
                accumulator.add(batch)
                advance(len(batch))
        except FisherError as error:
            failed = error  # said to the others, who would wait for this process's sums
        for one in engine.exchange(failed):
            if one is not None:
                raise _refused(one, title) from one
        engine.settle()
        if engine.world > 1:
            from fisher.distributed import reduce_sums

            reduce_sums(accumulator)
        estimate = accumulator.finish()
    return _without_adapter(estimate), encoded


def _refused(error: FisherError, title: str) -> ClmergeError:
    from fisher.errors import DivergedError

    kind = NonFiniteError if isinstance(error, DivergedError) else DataError
    return kind("the Fisher of a task cannot be taken", detail=f"{title}: {error}")


def _without_adapter(estimate: Estimate) -> Estimate:
    """The same under the names that parameters have in the model alone."""
    return replace(
        estimate,
        diagonal={file_name(name): values for name, values in estimate.diagonal.items()},
        missing={
            file_name(name): reason
            for name, reason in estimate.missing.items()
            if ".lora_" not in name and ".original_module." not in name
        },
        standard_error={file_name(n): error for n, error in estimate.standard_error.items()},
    )
