"""Which tensors of two checkpoints are compared, decided from headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.plan import Selection
from mergekit_cl.ties import Ties, find_ties


@dataclass(frozen=True)
class ShapeDifference:
    """A tensor that both have, in different shapes."""

    name: str
    merged: tuple[int, ...]
    parent: tuple[int, ...]


@dataclass(frozen=True)
class Pairing:
    """A checkpoint's tensors against a parent's; names are those of the first.

    names: {name: the parent's name of it} of float tensors of one shape. others: the same of
    tensors that are no floats, which are equal or not and have no distance.
    """

    names: dict[str, str]
    others: dict[str, str]
    only_merged: tuple[str, ...]
    only_parent: tuple[str, ...]
    shapes: tuple[ShapeDifference, ...]


def pair(merged: Checkpoint, parent: Checkpoint, selection: Selection) -> Pairing:
    """Pair the tensors of two checkpoints by name; a tied name finds what it is tied to.

    selection: of names of the first, and for what it lacks of the second.

    Raises MismatchError where they share no tensor.
    """
    ties = find_ties([merged, parent])
    names: dict[str, str] = {}
    others: dict[str, str] = {}
    only: list[str] = []
    shapes: list[ShapeDifference] = []
    for name, tensor in merged.tensors.items():
        if name not in selection:
            continue
        theirs = _find(name, parent, ties)
        if theirs is None:
            only.append(name)
        elif (other := parent.tensors[theirs]).shape != tensor.shape:
            shapes.append(ShapeDifference(name, tensor.shape, other.shape))
        elif tensor.is_float and other.is_float:
            names[name] = theirs
        else:
            others[name] = theirs
    if not names and not others and not shapes:
        raise MismatchError(
            "the checkpoints have no tensor in common",
            detail=f"{merged.path} has {_first(merged)}, {parent.path} has {_first(parent)}",
            hint="compare checkpoints of one architecture; clmerge inspect lists names",
        )
    if not names and not others:
        one = shapes[0]
        raise MismatchError(
            "the checkpoints have no tensor of one shape in common",
            detail=f"{one.name}: {list(one.merged)} in {merged.path}, "
            f"{list(one.parent)} in {parent.path}",
            hint="compare checkpoints of one size",
        )
    missing = [
        name for name in parent.tensors if name in selection and _find(name, merged, ties) is None
    ]
    return Pairing(names, others, tuple(only), tuple(missing), tuple(shapes))


def _find(name: str, checkpoint: Checkpoint, ties: Ties) -> str | None:
    """What a checkpoint calls a tensor, or None where it has none."""
    if name in checkpoint.tensors:
        return name
    if name in checkpoint.aliases:
        return checkpoint.aliases[name]
    held = ties.held(checkpoint, ties.canonical.get(name, name))
    return None if held is None else held.name


def check_selection(selection: Selection, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OptionError for a pattern that matches no tensor anywhere."""
    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.tensors)
    for glob in (*selection.include, *selection.exclude):
        if not any(fnmatchcase(name, glob) for name in names):
            near = get_close_matches(glob, names, n=1, cutoff=0.3)
            raise OptionError(
                "a pattern matches no tensor",
                detail=f"{glob!r}: {len(names)} tensors to choose from",
                hint=f"a name there is {near[0]}"
                if near
                else f"clmerge inspect {checkpoints[0].path}",
            )


def _first(checkpoint: Checkpoint) -> str:
    names = list(checkpoint.tensors)[:2]
    return ", ".join(names) or "none"
