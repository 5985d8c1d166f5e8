"""How much rows' losses differ: what a gate's power depends on, before there is a candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.decide.ratio import ratio
from mergekit_cl.training.choose import choose
from mergekit_cl.training.loss import measure_losses
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.schema import Config

ROWS = 32


def measure_spread(config: Config, checkpoint: Checkpoint, rows: Sequence[Row]) -> float | None:
    """Standard deviation of rows' losses, in nats per token, of the model as it is.

    On up to 32 of the rows, chosen by their content. Longer rows count more, as they do in the
    mean. None where all losses are equal.
    """
    losses, _ = measure_losses(
        checkpoint,
        choose(rows, ROWS, config.seed).rows,
        max_length=config.batch.max_length,
        device="cpu",
        like=None,
        advance=lambda count: None,
    )
    _, error = ratio(np.asarray(losses.nats), np.asarray(losses.tokens, dtype=np.float64))
    return error * math.sqrt(len(losses.ids)) if error else None
