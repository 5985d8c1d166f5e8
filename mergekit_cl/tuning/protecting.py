"""From Fisher sidecars and the checkpoints they were taken at to what training must hold back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.continual.combining import add_protections, decay_protection
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import MismatchError
from mergekit_cl.sidecar import Sidecar, check_comparable
from mergekit_cl.training.fused import Fused
from mergekit_cl.training.model import BuiltModel

if TYPE_CHECKING:
    from torch import Tensor


def protection_from_sidecars(
    built: BuiltModel,
    earlier: Sequence[tuple[Sidecar, Checkpoint]],
    *,
    mode: Literal["sum", "online"] = "sum",
    gamma: float = 1.0,
) -> Protection | None:
    """Earlier tasks, oldest first, each by its sidecar and the weights it ended with, as one.

    None where there is none. Raises MismatchError where sidecars differ in estimator, unit or
    level, for one lambda cannot mean both; otherwise as `protection_from_sidecar`.
    """
    check_comparable([sidecar for sidecar, _ in earlier])
    whole: Protection | None = None
    for sidecar, anchor in earlier:
        new = protection_from_sidecar(built, sidecar, anchor)
        if whole is None:
            whole = new
        elif mode == "sum":
            whole = add_protections(whole, new)
        else:
            whole = decay_protection(whole, new, gamma)
    return whole


def kinds_of(sidecars: Iterable[Sidecar]) -> tuple[tuple[str, str], ...]:
    """(estimator, unit) of each kind of Fisher there is, without which no lambda means anything."""
    said = [sidecar.metadata for sidecar in sidecars]
    return tuple(sorted({(str(one["estimator"]), str(one["unit"])) for one in said}))


def protection_from_sidecar(built: BuiltModel, sidecar: Sidecar, anchor: Checkpoint) -> Protection:
    """A sidecar and its weights under the names of a model's parameters, on their devices.

    float32. Tied weights once, under the parameter's first name. What the sidecar holds and the
    model has no parameter for keeps its name in the file, so that coverage tells of it. anchor:
    the checkpoint the sidecar was taken at; the model may have grown since. Raises MismatchError
    where its weights have changed since, or a tensor is not in it.
    """
    check_taken_at(sidecar, anchor)
    held = sidecar.checkpoint.tensors.keys()
    fisher, weights = {}, {}
    for parameter, name in built.map.direct.items():
        if name in held:
            device = built.model.get_parameter(parameter).device
            fisher[parameter] = sidecar.checkpoint.tensor(name).to(device, torch.float32)
            weights[parameter] = anchor.tensor(name).to(device, torch.float32)
    for group in built.map.fused:
        if held >= set(group.files):
            fisher.update(_put_together(group, built, sidecar.checkpoint))
            weights.update(_put_together(group, built, anchor))
    known = {name for parameter in fisher for name in built.files_of(parameter)}
    for name in held - known:
        fisher[name] = sidecar.checkpoint.tensor(name).float()
        weights[name] = anchor.tensor(name).float()
    return Protection(fisher, weights)


def check_taken_at(sidecar: Sidecar, anchor: Checkpoint) -> None:
    """Raise MismatchError unless these are the weights that the Fisher was taken at, by digest."""
    fisher = sidecar.checkpoint
    if (sidecar.metadata.get("options") or {}).get("adapter") is not None:
        raise MismatchError(
            "a Fisher sidecar was taken with an adapter in the weights",
            detail=f"{fisher.path}: no checkpoint is what it was taken at",
            hint="--continue the run that made it; or clmerge lora-merge, then clmerge fisher",
        )
    for name, tensor in fisher.tensors.items():
        weight = anchor.tensors.get(name)
        if weight is None or weight.shape != tensor.shape:
            have = "nothing" if weight is None else str(list(weight.shape))
            raise MismatchError(
                "a Fisher sidecar belongs to another anchor",
                detail=f"{fisher.path}: {name} is {list(tensor.shape)}, {anchor.path} has {have}",
                hint="the anchor is the checkpoint that the sidecar was computed for",
            )
    expected = {name: sidecar.digest(name) for name in fisher.tensors}
    wanted = {name: digest for name, digest in expected.items() if digest is not None}
    digests = checkpoint_digests(anchor, names=wanted)
    changed = [name for name, digest in wanted.items() if digests[name] != digest]
    if changed:
        raise MismatchError(
            "a Fisher sidecar was taken at other weights",
            detail=f"{fisher.path}: {changed[0]} of {anchor.path} has changed since"
            + (f", and {len(changed) - 1} more" if len(changed) > 1 else ""),
            hint=f"clmerge fisher {anchor.path} --data FILE",
        )


def _put_together(
    group: Fused, built: BuiltModel, checkpoint: Checkpoint
) -> Iterator[tuple[str, Tensor]]:
    """(parameter, values) of parameters that hold several tensors of the file, or parts of one.

    Only the way from parameters to tensors is known. It moves elements and changes none, so sent
    along it, their numbers say where each came from.
    """
    marked, total = {}, 0
    for parameter in group.parameters:
        values = built.model.get_parameter(parameter)
        marked[parameter] = torch.arange(total, total + values.numel()).view(values.shape)
        total += values.numel()
    elements = torch.empty(total)
    for name, numbers in group.take_apart(marked, built.model):
        elements[numbers.reshape(-1)] = checkpoint.tensor(name).reshape(-1).float()
    for parameter, numbers in marked.items():
        yield parameter, elements[numbers].to(built.model.get_parameter(parameter).device)
