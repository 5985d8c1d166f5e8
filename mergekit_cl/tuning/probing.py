"""One row through a model, to see what of it a gradient reaches."""

from __future__ import annotations

from mergekit_cl.training.encode import collate
from mergekit_cl.tuning.model import Tuned
from mergekit_cl.tuning.taskrows import TaskRows


def has_unused(tuned: Tuned, task: TaskRows) -> bool:
    """Whether some of what is trained gets no gradient, such as a pooler that no head asks.

    Leaves the model in eval mode, without gradients.
    """
    row = next(iter(task.encoded.values()))
    tuned.module.eval()
    batch = collate([row], 0, tuned.built.kind)
    tuned.module(**batch.inputs).logits.sum().backward()
    parameters = tuned.trained().values()
    found = any(parameter.grad is None for parameter in parameters)
    for parameter in parameters:
        parameter.grad = None
    return found
