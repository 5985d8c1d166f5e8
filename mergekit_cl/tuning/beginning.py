"""A run's changing parts before its first step, new or taken over from an earlier run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mergekit_cl.continual.average import WeightAverage
from mergekit_cl.continual.buffer import Buffer
from mergekit_cl.continual.mixing import Realised
from mergekit_cl.continual.posthoc import tracks_of
from mergekit_cl.training.bufferfile import load_buffer
from mergekit_cl.tuning.live import History, Live
from mergekit_cl.tuning.optimizer import make_optimizer
from mergekit_cl.tuning.position import Position
from mergekit_cl.tuning.preparing import Prepared
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.state import placed
from mergekit_cl.tuning.watching import stream_of


def begin(config: Config, prepared: Prepared) -> Live:
    """What changes, as it is before the first step; the model lies on its device."""
    tuned = prepared.tuned
    live = Live(tuned, make_optimizer(config.optimizer, tuned.trained()))
    if config.ema is not None:
        live.average = WeightAverage(
            tuned,
            half_life=config.ema.half_life,
            unit=config.ema.unit,
            warmup=config.ema.warmup,
        )
        if config.ema.snapshot_every:
            live.tracks = tracks_of(tuned)
    live.buffer = _buffer(config, prepared.held_out)
    if prepared.protection is not None:
        live.protection = placed(prepared.protection, live)
        live.protected = 1
        live.fishers = prepared.fishers
    if config.drift is not None:
        live.stream = stream_of(config.drift)
    return live


def go_on(live: Live, held_out: Collection[str], *, anew: Config | None = None) -> None:
    """Make what was loaded fit this run.

    held_out: ids of rows that no buffer may hold. anew: the config of a run that builds on the one
    loaded: it begins with the first of its own tasks, and with a fresh optimizer.
    """
    if anew is not None:
        _begin_anew(live, anew, held_out)
    if live.buffer is not None:
        live.buffer.hold_out(held_out)


def _begin_anew(live: Live, config: Config, held_out: Collection[str]) -> None:
    now = live.position
    live.position = Position(steps=now.steps, tokens=now.tokens)
    live.realised = Realised()
    live.optimizer = make_optimizer(config.optimizer, live.tuned.trained())
    live.history = replace(History(), looks=live.history.looks)
    live.record.reference, live.record.anchor = {}, {}
    if live.average is not None and not live.average.updates:
        # The earlier run kept none: it begins at that run's weights, not at those of the base.
        live.average.restart(live.tuned)
    if live.tracks:  # they are as long as a run: what came before it would make them longer
        live.tracks = tracks_of(live.tuned)
    wanted = _buffer(config, held_out)
    if live.buffer is not None and wanted is not None:
        for kept in live.buffer.rows():
            wanted.add(kept.row, kept.label, kept.task, kept.step)
        wanted.seen = live.buffer.seen
    if wanted is not None:
        live.buffer = wanted


def _buffer(config: Config, held_out: Collection[str]) -> Buffer | None:
    """An empty buffer as the config asks for it, or the one in the folder that it names."""
    settings = config.replay
    if settings is None:
        return None
    buffer = Buffer(settings.rows, config.seed, settings.policy, held_out)
    if settings.buffer is not None:
        earlier = load_buffer(Path(settings.buffer))
        for kept in earlier.rows():
            buffer.add(kept.row, kept.label, kept.task, kept.step)
        buffer.seen = earlier.seen
    return buffer
