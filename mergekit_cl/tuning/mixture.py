"""What a step learns from: new rows in their order, and rows of the buffer beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergekit_cl.continual.mixing import loss_weights, mix
from mergekit_cl.training.encode import EncodedRow
from mergekit_cl.tuning.batches import GlobalBatch, tokens_of
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.order import Passes
from mergekit_cl.tuning.schema import Config, Replay


@dataclass(frozen=True)
class Mixture:
    """The rows of one task, and those of the buffer as tokens {row id: row}."""

    task: str
    fresh: Mapping[str, EncodedRow]
    replayed: Mapping[str, EncodedRow]
    passes: Passes
    rows: int
    replay: Replay | None
    seed: int

    def batch(self, live: Live) -> GlobalBatch:
        """The batch at the run's position."""
        kept = () if live.buffer is None else live.buffer.rows()
        names = [one.row.id for one in kept if one.row.id in self.replayed]
        ratio = 0.0 if self.replay is None else self.replay.ratio
        now = live.position
        found = mix(names, self.rows, ratio, step=now.steps, seed=self.seed)
        fresh = tuple(self.fresh[name] for name in self.passes.take(now.consumed, found.fresh))
        old = tuple(self.replayed[name] for name in found.replayed)
        weights = (1.0, 1.0)
        if self.replay is not None and self.replay.unit == "tokens":
            counts = (sum(map(tokens_of, fresh)), sum(map(tokens_of, old)))
            weights = loss_weights(len(fresh), len(old), *counts)
        return GlobalBatch(fresh, old, weights)


def mixture_of(
    config: Config,
    task: str,
    fresh: Mapping[str, EncodedRow],
    replayed: Mapping[str, EncodedRow],
) -> Mixture:
    """The batches of one task.

    replayed: rows of the buffer as tokens; those that the task itself learns are left out.
    """
    passes = Passes(tuple(fresh), seed=config.seed, task=task)
    others = {name: row for name, row in replayed.items() if name not in fresh}
    return Mixture(task, fresh, others, passes, config.batch.rows, config.replay, config.seed)
