"""Whether what a merge left beside its weights still belongs to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from mergekit_cl.carry import FILE as CARRY_FILE
from mergekit_cl.carry import find_carry
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.differing import Difference, ReadWeights
from mergekit_cl.errors import InputError
from mergekit_cl.lora.undofile import FILE as UNDO_FILE
from mergekit_cl.lora.undofile import KEY as UNDO_KEY
from mergekit_cl.lora.undofile import undo_digest
from mergekit_cl.recorded import Recorded

DIVERGENCE = "divergence.json"

ReadBeside: TypeAlias = Callable[[str], bytes | None]


def compare_carry(opened: Checkpoint, read: ReadWeights) -> Iterator[Difference]:
    """Residuals of other weights, which the next merge would refuse, or that nobody can read."""
    try:
        carry = find_carry(opened)
    except InputError as error:
        yield Difference("carry_unreadable", CARRY_FILE, None, error.message)
        return
    if carry is None:
        return
    carry.checkpoint.close()
    if read.weights_digest is not None and carry.weights_digest != read.weights_digest:
        yield Difference("carry_stale", CARRY_FILE, carry.weights_digest, read.weights_digest)


def compare_undo(opened: Checkpoint, recorded: Recorded, read: ReadWeights) -> Iterator[Difference]:
    """The bits that undo a merge: gone, of other weights, or no longer what was written."""
    undo = recorded.content.get("undo")
    if not isinstance(undo, dict) or undo.get("kind") != "xor":
        return
    place = opened.beside(UNDO_FILE)
    if place is None:
        yield Difference("undo_unreadable", UNDO_FILE, None, "it is gone")
        return
    if not isinstance(place, Path) or undo.get("digest") is None:
        return  # beyond this disk it would have to be fetched whole
    try:
        found = undo_digest(place)
        with open_checkpoint(place) as bits:
            owner = json.loads(bits.metadata[UNDO_KEY])["weights_digest"]
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        told = error.message if isinstance(error, InputError) else "it undoes no merge"
        yield Difference("undo_unreadable", UNDO_FILE, None, told)
        return
    if read.weights_digest is not None and owner != read.weights_digest:
        yield Difference("undo_stale", UNDO_FILE, owner, read.weights_digest)
    elif found != undo["digest"]:
        yield Difference("undo_changed", UNDO_FILE, undo["digest"], found)


def compare_divergence(read: ReadBeside, recorded: Recorded) -> Iterator[Difference]:
    """A report whose verdict is not the manifest's, or that is gone or no report.

    read: gives the content of a file in the side folder, None where it is not there.
    """
    verdict = recorded.content.get("verdict")
    try:
        content = read(DIVERGENCE)
        if content is None:
            if verdict is not None:
                yield Difference("divergence_unreadable", DIVERGENCE, None, "it is gone")
            return
        found = json.loads(content)["verdict"]
    except InputError as error:
        yield Difference("divergence_unreadable", DIVERGENCE, None, error.message)
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no report of a merge"
        yield Difference("divergence_unreadable", DIVERGENCE, None, reason)
        return
    if found != verdict:
        yield Difference("divergence_verdict", DIVERGENCE)  # values may be anything, NaN too
