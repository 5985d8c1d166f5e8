"""The plan of a merge of adapters into a base: what each tensor is made of, from headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mergekit_cl.carry import Carry, carry_layout
from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import MismatchError
from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.lora.adapter import Adapter
from mergekit_cl.lora.applying import Applied, Applying, kernel_bytes
from mergekit_cl.lora.edits import Edit, Replace
from mergekit_cl.lora.factors import Kept
from mergekit_cl.merge.formula import COMPILED_DTYPES
from mergekit_cl.merge.kernel import Merged
from mergekit_cl.plan import Action, Operand, Plan, Selection, Step

if TYPE_CHECKING:
    import torch


class Edited(NamedTuple):
    """What is done to one tensor of the output: a replacement first, then the others in order."""

    replaced: tuple[Adapter, Replace] | None
    changes: tuple[Applied, ...]


def by_tensor(edits: Sequence[tuple[Adapter, Sequence[Edit]]]) -> dict[str, Edited]:
    """{tensor: its edits}, adapters in order.

    Raises MismatchError where one adapter replaces what another one changes: the result would
    depend on something nobody said.
    """
    found: dict[str, Edited] = {}
    owners: dict[str, set[int]] = {}
    for number, (adapter, own) in enumerate(edits):
        for edit in sorted(own, key=lambda one: not isinstance(one, Replace)):
            before = found.get(edit.name, Edited(None, ()))
            owners.setdefault(edit.name, set()).add(number)
            if isinstance(edit, Replace):
                found[edit.name] = before._replace(replaced=(adapter, edit))
            else:
                changed = (*before.changes, Applied(adapter, edit))
                found[edit.name] = before._replace(changes=changed)
    for name, one in found.items():
        if one.replaced is not None and len(owners[name]) > 1:
            raise MismatchError(
                "one adapter replaces a tensor that another one changes too",
                detail=f"{name}: replaced by {one.replaced[0].path}",
                hint="merge them one after the other, in the order you mean",
            )
    return found


def plan_lora(
    base: Checkpoint,
    edited: Mapping[str, Edited],
    *,
    carry: Carry | None,
    keeps_bits: bool,
    materialised: Mapping[str, str],
    config: Mapping[str, object],
    tokenizer: Path | None,
    selection: Selection,
    dtype: str | None,
    shard_size: int,
    notes: Sequence[str],
    keep_residuals: int | None,
    allow_nonfinite: bool,
) -> Plan:
    """Plan a merge: edited tensors are made in float64 and rounded once, others are copied.

    materialised: {tensor the file lacks: the one it has been tied to}. config, tokenizer: what
    changes in config.json, and where the tokenizer is from. carry: residuals of the base.
    keeps_bits: whether the base's bits are kept beside. The others are those of `plan_merge`.
    """
    selection.check(base)
    kept = Kept()
    sources: dict[str, TensorInfo | None] = dict(base.tensors)
    sources.update({name: base.tensors[anchor] for name, anchor in materialised.items()})
    sources.update({name: None for name in edited if name not in sources})
    steps = {}
    excluded = 0
    for name, info in sources.items():
        own = edited.get(name)
        if own is not None and name not in selection:
            excluded += 1
            own = None
        if own is not None:
            keeps = keep_residuals is not None
            steps[name] = _edited(name, base, info, own, carry, dtype, kept, allow_nonfinite, keeps)
        elif info is not None:
            steps[name] = _copied(name, Operand(base, info), carry, dtype)
    shapes = [(step.name, step.dtype, step.shape) for step in steps.values()]
    layout = lay_out(shapes, stem="model", shard_size=shard_size, metadata={"format": "pt"})
    told = list(notes)
    if excluded:
        told.append(f"{excluded} tensors that the adapters change are copied, as selected")
    residuals: Layout | None = None
    if keep_residuals is not None:
        made = [shape for shape in shapes if steps[shape[0]].kernel is not None]
        residuals = carry_layout(made, keep_residuals)
        residuals = residuals if residuals.shards[0].header.tensors else None
    return Plan(
        steps,
        layout,
        tuple(told),
        residuals,
        config=config,
        tokenizer=tokenizer,
        beside_bytes=_undo_bytes(base, steps) if keeps_bits else 0,
    )


def _undo_bytes(base: Checkpoint, steps: Mapping[str, Step]) -> int:
    """The most that the bits of the changed tensors may take: all of them, and a little more."""
    changed = (
        info.nbytes
        for name, info in base.tensors.items()
        if steps[name].kernel is not None
        or steps[name].operands[0].checkpoint is not base
        # What is copied changes by its dtype alone.
        or steps[name].dtype != info.dtype
    )
    return sum(nbytes + nbytes // 500 for nbytes in changed)


def _copied(name: str, source: Operand, carry: Carry | None, dtype: str | None) -> Step:
    """A tensor that stays; what rounding once took from it stays with it."""
    info = source.info
    kept = dtype if dtype is not None and info.is_float else info.dtype
    parents = (0,) if info.is_float else ()
    fishers = (None,) * len(parents)
    residual = _residual(carry, info.name)
    if residual is None:
        return Step(name, kept, info.shape, "copied", (source,), None, parents, fishers)
    action: Action = "copied" if kept == info.dtype else "merged"
    operands = (source, residual)
    return Step(
        name, kept, info.shape, action, operands, _unchanged, parents, fishers, (1,), compute="F64"
    )


def _compilable(operands: Sequence[Operand], out: str) -> bool:
    """Whether compiled code can widen all operands and round to the output."""
    return {out, *(operand.info.dtype for operand in operands)} <= COMPILED_DTYPES


def _residual(carry: Carry | None, name: str) -> Operand | None:
    """What rounding took from a tensor of the base, where that was kept."""
    info = None if carry is None else carry.checkpoint.tensors.get(name)
    return None if carry is None or info is None else Operand(carry.checkpoint, info)


def _unchanged(operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor]) -> Merged:
    return Merged(scratch[0].copy_(operands[0]))


def _edited(
    name: str,
    base: Checkpoint,
    info: TensorInfo | None,
    own: Edited,
    carry: Carry | None,
    dtype: str | None,
    kept: Kept,
    allow_nonfinite: bool,
    keeps_residuals: bool,
) -> Step:
    if own.replaced is not None:
        adapter, edit = own.replaced
        source = Operand(adapter.checkpoint, adapter.tensors[edit.tensor])
    else:
        assert info is not None
        source = Operand(base, info)
    shape = source.info.shape
    out = dtype or (info or source.info).dtype
    operands: tuple[Operand, ...] = (source,)
    parents: tuple[int, ...] = ()
    residuals: tuple[int | None, ...] = ()
    if own.replaced is None:
        parents = (0,)
        assert info is not None
        if (residual := _residual(carry, info.name)) is not None:
            operands += (residual,)
            residuals = (1,)
    elif info is not None and info.shape == shape:
        operands += (Operand(base, info),)
        parents = (1,)
    fishers = (None,) * len(parents)
    if not own.changes:
        kernel = _unchanged if keeps_residuals else None
        return Step(name, out, shape, "merged", operands, kernel, parents, fishers, compute="F64")
    applying = Applying(
        shape,
        own.changes,
        lambda start, stop: _unmerged(operands, residuals, start, stop),
        kept,
        allow_nonfinite=allow_nonfinite,
    )
    return Step(
        name,
        out,
        shape,
        "merged",
        operands,
        applying.kernel_of(0),
        parents,
        fishers,
        residuals,
        compute="F64",
        kernel_of=applying.kernel_of,
        compiled_of=applying.compiled_of if _compilable(operands, out) else None,
        kernel_bytes=kernel_bytes(shape, own.changes),
    )


def _unmerged(
    operands: Sequence[Operand], residuals: Sequence[int | None], start: int, stop: int
) -> torch.Tensor:
    """Elements of the tensor that is edited, in float64, with what rounding took from it."""
    import torch

    def read(operand: Operand) -> torch.Tensor:
        return operand.checkpoint.read(operand.info.name, start, stop).to(torch.float64, copy=True)

    whole = read(operands[0])
    for place in residuals:
        if place is not None:
            whole += read(operands[place])
    return whole
