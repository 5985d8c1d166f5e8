"""`lora-unmerge`: a merged checkpoint back to its base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.companions import copy_companions
from mergekit_cl.digest import bytes_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.lora.approximate import drift, merged_adapters, subtracting
from mergekit_cl.lora.restored import companion, open_restored, open_undo
from mergekit_cl.lora.undo import Undoing, read_undoing
from mergekit_cl.lora.unmerging import (
    Made,
    changed_since,
    check_restored,
    check_same_base,
    plan_unmerge,
)
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan
from mergekit_cl.recorded import MANIFEST, Recorded, parse_recorded
from mergekit_cl.results import TensorResult


def unmerge_method(
    merged: Checkpoint, *, base: str | None, approximate: bool, headers_only: bool
) -> Method:
    """Undo the lora-merge that made `merged`.

    base: where the base is; by default where the record says, or the undo file. headers_only: do
    not compare digests first, to plan alone. approximate: subtract the update from tensors that
    have changed since. Raises InputError where nothing is recorded,
    MismatchError where the checkpoint has changed since or the base is another one.
    """
    recorded = _recorded(merged)
    undoing = read_undoing(recorded.content["undo"], str(recorded.path))
    digests = None if headers_only else checkpoint_digests(merged)
    changed = changed_since(recorded, merged, digests)
    known = changed_since(recorded, merged, None)
    if changed and (known or not approximate):
        raise MismatchError(
            f"{len(changed)} tensors have changed since the merge",
            detail=f"{merged.path}: {', '.join((known or changed)[:3])}",
            hint="take the merge as it was, or its base"
            + ("" if known else "; --approximate subtracts the update from what they are now"),
        )
    by_reference = base is not None or undoing.kind == "base"
    source = (
        _open_base(base or undoing.path, given=base is not None)
        if by_reference
        else open_restored(merged, undoing.tensors, recorded.weights_digest)
    )
    inputs = recorded.content.get("inputs") or [{}]
    made = Made(merged, recorded, undoing, source, inputs[0].get("weights_digest"))
    check_same_base(made)
    if changed:
        adapters = merged_adapters(recorded.content)
        steps = subtracting(made, changed, adapters)
        made = made._replace(changed=frozenset(changed), subtracted=steps)
    if by_reference:
        _check_companions(made)
    return Method(
        "lora-unmerge",
        {"kind": "base" if by_reference else "xor", "approximate": sorted(changed)},
        [merged],
        None,
        [None],
        base=source,
        planner=partial(plan_unmerge, made),
        record=partial(_record, made),
        companions=partial(_companions, made, by_reference),
        beside=partial(_drift, made, by_reference) if changed else None,
    )


def _recorded(merged: Checkpoint) -> Recorded:
    raw = merged.read_beside(MANIFEST)
    if raw is None:
        raise InputError(
            "nothing is recorded of how this checkpoint was made",
            detail=f"{merged.side_place}: no {MANIFEST}",
            hint="name the output of a clmerge lora-merge, with its clmerge folder",
        )
    recorded = parse_recorded(raw, Path(merged.side_place) / MANIFEST)
    if recorded.command != "lora-merge":
        raise InputError(
            "this checkpoint was not made by lora-merge",
            detail=f"{merged.path}: made by {recorded.command}",
            hint=f"clmerge inspect {merged.path} tells of what it was made",
        )
    if not recorded.content.get("undo"):
        sources = [s.get("path") for s in recorded.content.get("inputs", ()) if isinstance(s, dict)]
        raise InputError(
            "the merge kept nothing to undo it with (--undo none)",
            detail=str(recorded.path),
            hint=f"its base was {sources[0]}" if sources else None,
        )
    return recorded


def _open_base(path: str, *, given: bool) -> Checkpoint:
    try:
        return open_checkpoint(path)
    except InputError as error:
        if not given:
            error.hint = "say where the base is now: --base PATH"
        raise


def _check_companions(made: Made) -> None:
    """Raise MismatchError where config or tokenizer are not what the base had."""
    for name, digest in made.undoing.files.items():
        path = made.base.root / name
        if not path.is_file() or bytes_digest(path.read_bytes()) != digest:
            raise MismatchError(
                "a file of the base is not what it was when it was merged into",
                detail=str(path),
                hint="bring it back, or give the base as it was then: --base PATH",
            )


def _record(made: Made, plan: Plan, results: Mapping[str, TensorResult]) -> dict[str, Any]:
    """The proof comes first: what is not the base is not published."""
    check_restored(made, plan, results)
    return {}


def _drift(
    made: Made,
    by_reference: bool,
    out: Path,
    side: Path,
    plan: Plan,
    results: Mapping[str, TensorResult],
) -> dict[str, Any]:
    """How far tensors that were not restored are from the base; None where nobody can know."""
    del side, plan, results
    with open_checkpoint(out) as restored:
        return {
            "drift": {
                name: drift(restored, made.base, name) if by_reference else None
                for name in sorted(made.changed)
                if name in restored.tensors
            }
        }


def _companions(made: Made, by_reference: bool, out: Path) -> None:
    """Config and tokenizer of the base, byte for byte."""
    undoing: Undoing = made.undoing
    if by_reference:
        if made.base.folder:
            copy_companions(made.base.root, out, None)
        return
    if made.merged.folder:
        copy_companions(made.merged.root, out, None)
    for name in undoing.added_files:
        (out / name).unlink(missing_ok=True)
    if not undoing.files:
        return
    undo = open_undo(made.merged)
    for name, digest in undoing.files.items():
        content = companion(undo, name)
        if bytes_digest(content) != digest:
            raise MismatchError(
                "a file in the undo file is not what is recorded", detail=f"{undo.path}: {name}"
            )
        (out / name).unlink(missing_ok=True)
        (out / name).write_bytes(content)
