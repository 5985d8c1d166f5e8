"""Inputs stay what they were while a run reads them, or nothing comes of it.

Size and time of every weight file are compared with those at its opening, whenever a file of the
output is finished and at the end. Where they agree but inode or change time do not, as after a
write whose time was set back, the digests of what was read decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.stamp import Stamp, stamp
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan
from mergekit_cl.results import TensorResult

Marks = list[list[list[int]]]


def check_stamps(method: Method) -> None:
    """Raise InputError where an input has been written to since it was opened."""
    for _, source in method.sources():
        for then, now in zip(source.opened_as, _stamps_now(source), strict=True):
            if now.differs(then):
                raise _changed(then.path)


def check_inputs(method: Method, plan: Plan, results: Mapping[str, TensorResult]) -> None:
    """The same, and also where only the digests of what was read can tell.

    results: with digests of whole operands.
    """
    check_stamps(method)
    for _, source in method.sources():
        if source.opened_as == _stamps_now(source):
            continue
        if name := _differing(source, plan, results):
            raise _changed(f"{source.path}: {name}")


def marks(method: Method) -> Marks:
    """[inode, change time] of every file of every input at its opening: what a journal keeps."""
    return [[[s.inode, s.changed] for s in source.opened_as] for _, source in method.sources()]


def trusted(
    entries: list[dict[str, Any]],
    found: Mapping[str, TensorResult],
    method: Method,
    plan: Plan,
) -> dict[str, TensorResult]:
    """The results of an interrupted run that still hold; sizes and times are known to agree.

    entries: lines of the journal, with the marks of the run that wrote them. found: their results.
    An entry of other marks holds if its operands' digests are those of the inputs now.
    """
    ours = marks(method)
    held: dict[str, TensorResult] = {}
    for entry in entries:
        theirs = entry["inputs"]
        results = {name: found[name] for name in entry["tensors"] if name in found}
        sources = [source for _, source in method.sources()]
        touched = [s for s, now, then in zip(sources, ours, theirs, strict=True) if now != then]
        if not any(_differing(source, plan, results) for source in touched):
            held.update(results)
    return held


def _differing(source: Checkpoint, plan: Plan, results: Mapping[str, TensorResult]) -> str | None:
    """A tensor of `source` of which other bytes were read than are there now."""
    read: dict[str, set[str]] = {}
    for name, result in results.items():
        for operand, digest in zip(plan.steps[name].operands, result.operand_digests, strict=True):
            if operand.checkpoint is source:
                read.setdefault(operand.info.name, set()).add(digest)
    now = checkpoint_digests(source, names=read)
    return next((name for name, digests in read.items() if digests != {now[name]}), None)


def _stamps_now(source: Checkpoint) -> list[Stamp]:
    found = []
    for file in source.files:
        try:
            found.append(stamp(file))
        except OSError:
            raise _changed(str(file)) from None
    return found


def _changed(where: str) -> InputError:
    return InputError(
        "an input changed while it was read",
        detail=where,
        hint="wait until nothing writes to it, and give the same command again",
    )
