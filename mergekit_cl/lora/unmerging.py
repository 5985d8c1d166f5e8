"""Back from a merged checkpoint to its base: what is taken from where, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.layout import lay_out
from mergekit_cl.lora.undo import Undoing
from mergekit_cl.plan import Operand, Plan, Selection, Step
from mergekit_cl.recorded import Recorded, RecordedTensor
from mergekit_cl.results import TensorResult


class Made(NamedTuple):
    """A merge that is to be undone, and where its base's tensors are read.

    base_digest: of the base's weights, as recorded. changed: tensors that are no longer what the
    merge wrote. subtracted: how those of them that it had changed are made.
    """

    merged: Checkpoint
    recorded: Recorded
    undoing: Undoing
    base: Checkpoint
    base_digest: str | None
    changed: frozenset[str] = frozenset()
    subtracted: Mapping[str, Step] = MappingProxyType({})


def changed_since(
    recorded: Recorded, merged: Checkpoint, digests: Mapping[str, str] | None
) -> list[str]:
    """Tensors that are no longer what the merge wrote; by headers alone where `digests` is None."""
    now = merged.tensors
    found = [name for name in recorded.tensors if name not in now]
    found += [name for name in now if name not in recorded.tensors]
    for name, then in recorded.tensors.items():
        if name in now:
            same = (now[name].dtype, now[name].shape) == (then.dtype, then.shape)
            if not same or (digests is not None and digests[name] != then.digest):
                found.append(name)
    return found


def check_same_base(made: Made) -> None:
    """Raise MismatchError where headers already tell that it is not the recorded base."""
    for name, then in made.undoing.tensors.items():
        info = made.base.tensors.get(name)
        if info is None or (info.dtype, info.shape) != (then.dtype, then.shape):
            have = "nothing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise _other_base(made, f"{name}: {have}, not {then.dtype} {list(then.shape)}")


def plan_unmerge(
    made: Made,
    *,
    selection: Selection,
    dtype: str | None,
    shard_size: int,
    notes: Sequence[str],
    keep_residuals: int | None,
    allow_nonfinite: bool,
) -> Plan:
    """Plan it: what the merge changed is read from the base, all else from what was merged."""
    del dtype, keep_residuals, allow_nonfinite  # a base has its own, and NaN that it had too
    if selection.include or selection.exclude:
        raise OptionError(
            "a base is restored whole",
            detail="--include or --exclude",
            hint="leave them out",
        )
    steps = {
        name: _taken(made, name)
        for name in [
            *(name for name in made.merged.tensors if name not in made.undoing.added),
            *(name for name in made.undoing.tensors if name not in made.merged.tensors),
        ]
    }
    shapes = [(step.name, step.dtype, step.shape) for step in steps.values()]
    layout = lay_out(shapes, stem="model", shard_size=shard_size, metadata={"format": "pt"})
    return Plan(steps, layout, tuple(notes))


def check_restored(made: Made, plan: Plan, results: Mapping[str, TensorResult]) -> str:
    """The digest of the weights that were made; MismatchError where they are not the base's."""
    for name, result in results.items():
        if name in made.changed:
            continue
        then = wanted(made, name)
        if then is None or result.digest != then.digest:
            raise _other_base(made, f"{name}: other values than its digest says")
    entries = [(n, step.dtype, step.shape, results[n].digest) for n, step in plan.steps.items()]
    digest = weights_digest(entries)
    if not made.changed and made.base_digest not in (None, digest):
        raise _other_base(made, f"its weights were {made.base_digest:.16}, these are {digest:.16}")
    return digest


def wanted(made: Made, name: str) -> RecordedTensor | None:
    """What a tensor of the base was, by the record."""
    return made.undoing.tensors.get(name) or made.recorded.tensors.get(name)


def _taken(made: Made, name: str) -> Step:
    if name in made.subtracted:
        return made.subtracted[name]
    now = made.merged.tensors.get(name)
    if name not in made.undoing.tensors:
        assert now is not None
        operands: tuple[Operand, ...] = (Operand(made.merged, now),)
    else:
        then = made.base.tensors[name]
        operands = (Operand(made.base, then),)
        if now is not None and now.shape == then.shape:
            # Read too: its digest goes into the record.
            operands += (Operand(made.merged, now),)
    info = operands[0].info
    return Step(name, info.dtype, info.shape, "copied", operands, None, (), ())


def _other_base(made: Made, detail: str) -> MismatchError:
    return MismatchError(
        "this is not the base that was merged into",
        detail=f"{made.base.path}: {detail}",
        hint="give the base as it was then: --base PATH",
    )
