"""How well the model at hand does on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mergekit_cl.errors import NonFiniteError
from mergekit_cl.training.encode import Encoded
from mergekit_cl.training.loss import RowLosses, row_losses
from mergekit_cl.tuning.engine import Engine
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.schema import Config


def evaluate(
    engine: Engine, live: Live, suites: Mapping[str, Encoded], advance: Callable[[int], None]
) -> dict[str, RowLosses]:
    """The losses of the model as it is, {suite: losses}, computed in float32; by all processes."""
    live.tuned.module.eval()
    found = {name: _losses(engine, live, name, rows, advance) for name, rows in suites.items()}
    engine.settle()
    return found


@contextmanager
def as_published(config: Config, live: Live) -> Iterator[None]:
    """Within, the model has the weights that would be written: the average, where that is asked."""
    if config.ema is None or not config.ema.publish or live.average is None:
        yield
        return
    with live.average.applied(live.tuned):
        yield


def _losses(
    engine: Engine, live: Live, name: str, encoded: Encoded, advance: Callable[[int], None]
) -> RowLosses:
    where = f"{name}, after {live.position.steps} steps"
    if engine.world == 1 or engine.sharded:
        # Sharded models compute together: each process takes all rows.
        return row_losses(live.tuned.module, encoded, where=where, advance=advance)
    mine = replace(encoded, rows=encoded.rows[engine.rank :: engine.world])
    found: RowLosses | NonFiniteError | None = None
    try:
        if mine.rows:
            found = row_losses(live.tuned.module, mine, where=where, advance=advance)
    except NonFiniteError as error:
        found = error  # said to the others, who would wait for this process's losses
    parts = engine.exchange(found)
    for part in parts:
        if isinstance(part, NonFiniteError):
            raise part
    return _joined(encoded, [one for one in parts if one is not None])


def _joined(encoded: Encoded, parts: list[RowLosses]) -> RowLosses:
    """Losses of several processes in the order of the rows."""
    place = {row: (part, index) for part in parts for index, row in enumerate(part.ids)}
    ordered = [place[row.id] for row in encoded.rows]
    correct = None
    if parts[0].correct is not None:
        correct = tuple(bool(part.correct and part.correct[index]) for part, index in ordered)
    return RowLosses(
        tuple(row.id for row in encoded.rows),
        tuple(part.nats[index] for part, index in ordered),
        tuple(part.tokens[index] for part, index in ordered),
        correct,
    )
