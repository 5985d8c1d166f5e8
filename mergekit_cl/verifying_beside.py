"""Whether what a merge left beside its weights still belongs to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeAlias

from mergekit_cl.carry import FILE as CARRY_FILE
from mergekit_cl.carry import find_carry
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.differing import Difference, ReadWeights
from mergekit_cl.errors import InputError
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
