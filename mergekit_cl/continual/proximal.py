"""EWC as a step of its own, which cannot overshoot however strong it is.

The explicit gradient lambda F (theta - anchor) makes training diverge where lr lambda F > 2. The
implicit step solves for the weights it ends at,

    theta = (theta' + s anchor) / (1 + s)

so it never goes past the anchor. s is lr lambda F in the optimizer's own scaling, so that it rests
where the explicit gradient would: where task gradient and penalty cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import in_buckets, local
from mergekit_cl.continual.compiled import are_compiled, settle
from mergekit_cl.continual.ewc import Protection, matched
from mergekit_cl.errors import OptionError


class Scaling(NamedTuple):
    """s = factor F / (sqrt(v / correction) + eps); v and eps are 1 and 0 with SGD."""

    factor: float
    correction: float
    eps: float


def proximal_step(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    protection: Protection,
    strength: float,
) -> None:
    """Pull every protected parameter that the optimizer steps, right after `optimizer.step()`.

        SGD           s = lr lambda F (1 - dampening) / (1 - momentum)
        Adam, AdamW   s = lr lambda F / (sqrt(v_hat) + eps)

    With Adam's v of the task's gradients alone. Both rest where `add_penalty_gradient` does, up to
    AdamW's decoupled decay, which is weighed against another v. A parameter that Adam has never
    stepped is left alone. Raises OptionError for any other optimizer, by name: its scaling of a
    gradient is not known.
    """
    with torch.no_grad():
        for bucket in in_buckets(_groups(optimizer, parameters, protection, strength), scratches=2):
            scaling = bucket.key
            assert isinstance(scaling, Scaling)
            if are_compiled(bucket.columns):
                settle(bucket.columns, *scaling)
                continue
            thetas, fishers, anchors, *moments = bucket.columns
            share, moved = bucket.scratch
            if moments:
                torch._foreach_copy_(share, moments[0])
                torch._foreach_div_(share, scaling.correction)
                torch._foreach_sqrt_(share)
                torch._foreach_add_(share, scaling.eps)
            else:
                for part in share:
                    part.fill_(1)
            torch._foreach_copy_(moved, fishers)
            torch._foreach_mul_(moved, scaling.factor)
            # s / (1 + s) as 1 / (1 + 1/s), which is right for s of 0 and of infinity.
            torch._foreach_div_(share, moved)
            torch._foreach_add_(share, 1)
            torch._foreach_reciprocal_(share)
            torch._foreach_copy_(moved, thetas)
            torch._foreach_sub_(moved, anchors)
            torch._foreach_mul_(moved, share)
            torch._foreach_sub_(thetas, moved)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise OptionError unless its scaling of a gradient is known: SGD, Adam or AdamW."""
    kind = type(optimizer)
    known = kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    against = any(group.get("maximize") for group in optimizer.param_groups)
    if not known or against:
        raise OptionError(
            "the proximal update knows the scaling of torch's SGD, Adam and AdamW alone",
            detail=f"the optimizer is {kind.__module__}.{kind.__qualname__}"
            + (" with maximize=True" if known else ""),
            hint='use one of these, or the coupled update (update = "coupled")',
        )


def _groups(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    protection: Protection,
    strength: float,
) -> Iterator[tuple[Scaling, tuple[Tensor, ...]]]:
    check_optimizer(optimizer)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps = _steps(optimizer)
    for name, (theta, fisher, anchor, rows) in matched(parameters, protection):
        parameter = parameters[name]
        group = group_of.get(id(parameter))
        if group is None or not parameter.requires_grad:
            continue
        factor = strength * float(group["lr"])
        if "betas" not in group:
            factor *= (1 - group["dampening"]) / (1 - group["momentum"])
            yield Scaling(factor, 1.0, 0.0), (theta, fisher, anchor)
        elif id(parameter) in steps:
            state = optimizer.state[parameter]
            moment = local(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
            correction = 1 - float(group["betas"][1]) ** steps[id(parameter)]
            scaling = Scaling(factor, correction, float(group["eps"]))
            yield scaling, (theta, fisher, anchor, moment if rows is None else moment[rows])


def _steps(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """{id of parameter: steps taken}; read from each device at once, for each read waits for it."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for parameter, state in optimizer.state.items():
        if "step" in state:
            step = torch.as_tensor(state["step"])
            by_device.setdefault(step.device, []).append((id(parameter), step))
    found: dict[int, float] = {}
    for steps in by_device.values():
        values = torch.stack([step for _, step in steps]).tolist()
        found.update(zip((number for number, _ in steps), values, strict=True))
    return found
