"""What was seen of several values of lambda, and which one that speaks for. No files, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_cl.errors import OptionError


@dataclass(frozen=True)
class Trial:
    """One value of lambda. losses: {task: held-out loss at the end, nats per token}, of tasks that
    have rows to be judged by. forgetting: what earlier tasks are predicted to lose, nats per token,
    where that was asked for. diverged: training ended in what is no number.
    """

    strength: float
    losses: Mapping[str, float]
    forgetting: float | None = None
    diverged: bool = False

    @property
    def mean(self) -> float:
        """Over tasks; infinite where training diverged or nothing was measured."""
        return math.fsum(self.losses.values()) / len(self.losses) if self.losses else math.inf

    def to_json(self) -> dict[str, Any]:
        """As values; `mean` null where there is none."""
        return {
            "lambda": self.strength,
            "losses": dict(self.losses),
            "mean": self.mean if self.losses else None,
            "forgetting": self.forgetting,
            "diverged": self.diverged,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Trial:
        """The trial that `to_json` described."""
        said = (value["losses"], value["forgetting"], value["diverged"])
        return Trial(value["lambda"], dict(said[0]), *said[1:])


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The one of least mean loss over all tasks; of equals the larger lambda.

    Raises OptionError where all diverged.
    """
    best = min(trials, key=lambda trial: (trial.mean, -trial.strength))
    if best.diverged:
        raise OptionError(
            "training diverged with every lambda that was tried",
            detail=", ".join(f"{trial.strength:g}" for trial in trials),
            hint="a smaller optimizer.learning_rate",
        )
    return best


def within_budget(trials: Sequence[Trial], budget: float) -> Trial:
    """The smallest lambda with which earlier tasks are predicted to lose at most `budget`.

    Raises OptionError where there is none.
    """
    kept = [t for t in trials if t.forgetting is not None and t.forgetting <= budget]
    if kept:
        return min(kept, key=lambda trial: trial.strength)
    known = [t for t in trials if t.forgetting is not None]
    least = min(known, key=lambda t: t.forgetting or 0.0, default=None)
    raise OptionError(
        "with no lambda that was tried does forgetting stay within the budget",
        detail=f"ewc.auto.budget is {budget:g} nats per token"
        + ("" if least is None else f"; lambda {least.strength:g} loses {least.forgetting:.3g}"),
        hint="larger values in ewc.auto.candidates, fewer steps, or a larger budget",
    )


def curve(trials: Sequence[Trial], chosen: Trial) -> list[str]:
    """The whole curve as lines to print, by lambda, and a word where it says too little."""
    lines = []
    ordered = sorted(trials, key=lambda trial: trial.strength)
    for trial in ordered:
        said = ", ".join(f"{task} {loss:.4f}" for task, loss in trial.losses.items())
        words = [f"{trial.mean:.4f} nats per token on average ({said})"] if trial.losses else []
        if trial.diverged:
            words = ["diverged"]
        if trial.forgetting is not None:
            words.append(f"earlier tasks are predicted to lose {trial.forgetting:.4g}")
        line = f"lambda {trial.strength:g}: {'; '.join(words)}"
        lines.append(line + (" <- chosen" if trial is chosen else ""))
    if chosen.forgetting is None and chosen.strength == 0:
        lines.append("no lambda is better than none: EWC does not help on these tasks")
    elif chosen.forgetting is None and chosen is ordered[-1]:
        lines.append("the best is the largest that was tried: ewc.auto.candidates should go on")
    return lines
