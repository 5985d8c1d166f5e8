"""What one row of data is, and the names it goes by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "completion", "chat", "labelled"]


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it was read.

    content, by kind: text {"text"}; completion {"prompt", "completion"}; chat {"messages"};
    labelled {"text", "label"}. The keys are these whatever the file called its fields.
    where: file and line, for messages; not part of the row's identity. id: see `row_id`.
    """

    kind: Kind
    content: Mapping[str, Any]
    where: str
    id: str


def make_row(kind: Kind, content: Mapping[str, Any], where: str) -> Row:
    """A row whose id follows from its content."""
    return Row(kind, content, where, row_id(content))


def row_id(content: Mapping[str, Any]) -> str:
    """32 hex digits: blake2b of the content as JSON with sorted keys and ASCII escapes.

    A label counts by its spelling, so 1 in a jsonl file and "1" in a csv file are the same row.
    """
    meaning = dict(content)
    if "label" in meaning:
        meaning["label"] = str(meaning["label"])
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def data_digest(ids: Iterable[str]) -> str:
    """64 hex digits that name a set of rows: blake2b over their sorted ids."""
    return hashlib.blake2b("\n".join(sorted(ids)).encode("ascii"), digest_size=32).hexdigest()
