"""One optimizer step after the other. Read it top to bottom."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mergekit_cl.errors import NonFiniteError
from mergekit_cl.training.encode import collate
from mergekit_cl.tuning.batches import GlobalBatch, Part
from mergekit_cl.tuning.engine import Engine
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.mixture import Mixture
from mergekit_cl.tuning.optimizer import set_learning_rate
from mergekit_cl.tuning.order import generator_seed
from mergekit_cl.tuning.penalty import Penalty
from mergekit_cl.tuning.schedule import learning_rate
from mergekit_cl.tuning.schema import Config


@dataclass(frozen=True)
class Stepped:
    """One step for the log: sums of nats over all processes, norms, and what was replayed."""

    batch: GlobalBatch
    fresh_nats: float
    replayed_nats: float
    gradient_norm: float
    rate: float
    held: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A line of metrics.jsonl; losses in nats per token."""
        fresh, replayed = self.batch.fresh_tokens, self.batch.replayed_tokens
        return {
            "loss": self.fresh_nats / fresh if fresh else None,
            "replay_loss": self.replayed_nats / replayed if replayed else None,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.rate,
            "tokens": fresh + replayed,
            "rows": len(self.batch.fresh) + len(self.batch.replayed),
            **self.held,
        }


def take_step(
    config: Config, engine: Engine, live: Live, mixture: Mixture, penalty: Penalty, steps: int
) -> Stepped:
    """Learn from one global batch and move `live` on.

    steps: of the whole task. The loss is the sum over all tokens of the batch, in every process and
    part, divided by their number: it does not depend on how the batch was divided. Raises
    NonFiniteError where a gradient is no number; the weights are then as before.
    """
    now = live.position
    batch = mixture.batch(live)
    rate = learning_rate(config.optimizer, now.step, steps)
    set_learning_rate(live.optimizer, rate)
    parameters = live.tuned.trained()

    engine.module.train()
    live.optimizer.zero_grad(set_to_none=True)
    sums = [0.0, 0.0]
    parts = batch.parts(engine.rank, engine.world, config.batch.accumulate)
    for number, part in enumerate(parts):
        key = generator_seed(config.seed, mixture.task, now.step, engine.rank, number)
        torch.manual_seed(key)  # dropout's only source: no generator outlives a step
        with engine.apart(last=number + 1 == len(parts)):
            with engine.computing():
                nats = _row_nats(engine, live, part)
            weights = torch.tensor(part.weights, device=nats.device)
            # Gradients of processes are averaged where they meet, so each counts `world` times.
            engine.backward((nats * weights).sum() * (engine.world / batch.divisor))
        for value, fresh in zip(nats.tolist(), part.fresh, strict=True):
            sums[0 if fresh else 1] += value
    norm = _clip(parameters, config.optimizer.clip)
    sums = engine.total(sums)
    if not math.isfinite(norm + sums[0] + sums[1]):
        raise NonFiniteError(
            "the loss or its gradient is no longer a number",
            detail=f"task {mixture.task}, step {now.step}: "
            f"loss {sum(sums) / (batch.fresh_tokens + batch.replayed_tokens):.4g}, "
            f"gradient norm {norm:.4g}",
            hint="a smaller optimizer.learning_rate, or more optimizer.warmup",
        )
    held = penalty.before(norm, now.steps)
    live.optimizer.step()
    penalty.after(live.optimizer)
    if live.average is not None:
        live.average.update(live.tuned, tokens=batch.fresh_tokens + batch.replayed_tokens)
    for track in live.tracks:
        track.update(live.tuned)

    live.position = replace(
        now,
        step=now.step + 1,
        consumed=now.consumed + len(batch.fresh),
        steps=now.steps + 1,
        tokens=now.tokens + batch.fresh_tokens + batch.replayed_tokens,
    )
    live.realised = live.realised.plus(
        len(batch.fresh), len(batch.replayed), batch.fresh_tokens, batch.replayed_tokens
    )
    return Stepped(batch, sums[0], sums[1], norm, rate, held)


def _row_nats(engine: Engine, live: Live, part: Part) -> Tensor:
    """(B,) float32: -log p of each row's labels, summed over its positions."""
    kind = live.tuned.built.kind
    pad = live.tuned.built.model.config.pad_token_id or 0
    batch = collate(part.rows, pad, kind).to(engine.device)
    logits = engine.module(**batch.inputs).logits.float()
    labels = batch.labels
    nats = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none"
    )
    return nats.reshape(len(batch), -1).sum(dim=1)


def _clip(parameters: dict[str, Any], limit: float) -> float:
    """Scale gradients down to a norm of `limit`, if that is not 0; gives the norm before."""
    norm: Any = torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit or math.inf)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
