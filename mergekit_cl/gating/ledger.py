"""Which looks at which rows have been taken, across runs and machines: one JSON file.

A suite is known by the digest of its rows. A look is a test of one candidate against given models
with given settings; the same test again is the same look, since it can say nothing new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_cl.errors import FormatError, InputError
from mergekit_cl.output.durable import write_durably
from mergekit_cl.output.lock import lock_file

FORMAT = "clmerge.ledger/1"
Test = dict[str, Any]


@dataclass
class Ledger:
    """looks: {digest of a suite's rows: [{"look", "test", what came of it}]}, oldest first."""

    looks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def look_of(self, suite: str, test: Test) -> int:
        """Which look this test is or would be, counted from 1."""
        taken = self.looks.get(suite, [])
        return next((one["look"] for one in taken if one["test"] == test), len(taken) + 1)

    def take(self, suite: str, test: Test, came_of_it: Mapping[str, Any]) -> None:
        """Count a look, unless this test has been counted."""
        look = self.look_of(suite, test)
        taken = self.looks.setdefault(suite, [])
        if look > len(taken):
            taken.append({"look": look, "test": test, **came_of_it})


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file; an empty one where there is none yet.

    Raises InputError where it cannot be read, FormatError where it is no ledger.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise _unusable(path, error) from error
    return _parsed(path, text)


@contextmanager
def locked_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger, which no other process changes meanwhile; what was taken is written at the end.

    Waits for another process that holds it. Written durably and at once, and not at all where the
    block fails. Raises InputError where it cannot be read or written.
    """
    place = Path(os.path.realpath(path))  # a link stays one
    there = place.exists()
    try:
        descriptor = lock_file(place)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        before = place.read_bytes()
        ledger = _parsed(path, before)
        yield ledger
        after = _text(ledger)
        if after != before:
            write_durably(place, after)
    except OSError as error:
        raise _unusable(path, error) from error
    except BaseException:
        if not there and not place.read_bytes():
            place.unlink()  # made by the lock, for nothing
        raise
    finally:
        os.close(descriptor)


def _parsed(path: Path, text: bytes) -> Ledger:
    if not text.strip():
        return Ledger()
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        ledger = Ledger({str(suite): list(taken) for suite, taken in content["looks"].items()})
        for taken in ledger.looks.values():
            if [one["look"] for one in taken] != list(range(1, len(taken) + 1)):
                raise ValueError("looks")
            if not all(isinstance(one["test"], dict) for one in taken):
                raise ValueError("tests")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            "the ledger is none that clmerge wrote",
            detail=f"--ledger {path}",
            hint="restore it from a backup; a new one would count looks from 1 again",
        ) from error
    return ledger


def _text(ledger: Ledger) -> bytes:
    content = {"format": FORMAT, "looks": ledger.looks}
    return f"{json.dumps(content, indent=1, sort_keys=True)}\n".encode()


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(
        "the ledger cannot be read and written", detail=f"--ledger {path}: {error.strerror}"
    )
