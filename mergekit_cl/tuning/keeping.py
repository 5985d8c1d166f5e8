"""What later tasks need of a task that was learned: its Fisher and anchor, some of its rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mergekit_cl.continual.combining import add_protections, decay_protection
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.tuning.folding import folded
from mergekit_cl.tuning.importance import UNIT, choose_rows, estimate_fisher
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.model import file_name
from mergekit_cl.tuning.session import Session

if TYPE_CHECKING:
    from torch import Tensor


def keep_task(session: Session, live: Live) -> None:
    """Offer the task's rows to the buffer, and add its Fisher to the protection."""
    task = session.tasks[live.position.task]
    if live.buffer is not None:
        for row in task.train.values():
            live.buffer.add(row, row.content.get("label"), task.name, live.position.steps)
    settings = session.config.ewc
    if settings is None:
        return
    choice = choose_rows(session, task.train.values())
    title = f"fisher of {task.name}"
    estimate, _ = estimate_fisher(session, live, choice, everything=False, title=title)
    new = Protection(estimate.diagonal, _anchor(live, estimate.diagonal.keys()))
    if live.protection is None:
        live.protection = new
    elif settings.mode == "sum":
        live.protection = add_protections(live.protection, new)
    else:
        live.protection = decay_protection(live.protection, new, settings.gamma)
    live.protected += 1
    live.fishers = tuple(sorted({*live.fishers, (estimate.estimator, UNIT)}))


def _anchor(live: Live, names: Collection[str]) -> dict[str, Tensor]:
    """The weights as they are, the adapter's update in them."""
    with folded(live.tuned):
        return {
            file_name(name): parameter.detach().float().clone()
            for name, parameter in live.tuned.module.named_parameters()
            if file_name(name) in names
        }
