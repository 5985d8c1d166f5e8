"""From `--data` as it was typed to named suites of rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit_cl.errors import OptionError
from mergekit_cl.training.choose import choose
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.rows import Row

CHARACTERS_PER_TOKEN = 4  # of English: how long a passage of plain text is cut
_NAMED = re.compile(r"(?P<name>\w[\w.-]*)=(?P<path>.+)", re.DOTALL)
_NAME = re.compile(r"\w[\w.-]*")


def name_suites(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{suite: paths} of `NAME=PATH` or `PATH`, in the order given.

    A suite without a name is called after its file or folder. A name given again adds to its suite.
    Raises OptionError where two paths would share a name that nobody gave, and for a path that no
    name can be made of.
    """
    suites: dict[str, tuple[str, ...]] = {}
    unnamed: set[str] = set()
    for one in given:
        found = None if Path(one).exists() else _NAMED.fullmatch(one)
        name, path = (Path(one).stem, one) if found is None else (found["name"], found["path"])
        if not _NAME.fullmatch(name):
            raise OptionError(
                "a suite needs a name", detail=f"--data {one}", hint=f"--data NAME={one}"
            )
        if name in suites and (found is None or name in unnamed):
            raise OptionError(
                f"two suites are called {name}",
                detail=f"--data {suites[name][-1]} and --data {one}",
                hint=f"name them apart (--data NAME={one}), or both {name} to join them",
            )
        if found is None:
            unnamed.add(name)
        suites[name] = (*suites.get(name, ()), path)
    return suites


def read_suites(
    suites: Mapping[str, Sequence[str]],
    *,
    text_field: str | None,
    label_field: str | None,
    samples: int | None,
    max_length: int,
) -> dict[str, tuple[Row, ...]]:
    """The rows of each suite, each content once; of more than `samples` those of smallest key.

    Raises DataError for rows that cannot be used.
    """
    found = {}
    for name, paths in suites.items():
        rows = read_rows(
            paths,
            text_field=text_field,
            label_field=label_field,
            passage=CHARACTERS_PER_TOKEN * max_length,
        )
        found[name] = choose(rows, samples or sys.maxsize).rows
    return found
