"""A replay buffer as two texts: rows a line each, and a manifest that proves they are whole.

`buffer.jsonl`  {"id", "kind", "content", "where", "label", "task", "step"} per row
`buffer.json`   {"format", "capacity", "seed", "policy", "seen", "rows", "classes", "digest"}

`digest` is the blake3 of the rows' bytes: a text that is cut off or edited is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

from mergekit_cl.continual.buffer import POLICIES, Buffer, Kept
from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import FormatError
from mergekit_cl.training.rows import Kind, Row, row_id

FORMAT = "clmerge.buffer/1"
ROWS, MANIFEST = "buffer.jsonl", "buffer.json"


class Texts(NamedTuple):
    """The bytes of buffer.jsonl and buffer.json."""

    rows: bytes
    manifest: bytes


def encode(buffer: Buffer) -> Texts:
    """The two files; the same bytes for the same buffer, however it came to be."""
    lines = [_dumps(_entry(kept)) for kept in buffer.rows()]
    rows = "".join(f"{line}\n" for line in lines).encode("ascii")
    manifest = {
        "format": FORMAT,
        "capacity": buffer.capacity,
        "seed": buffer.seed,
        "policy": buffer.policy,
        "seen": buffer.seen,
        "rows": len(buffer),
        "classes": buffer.describe().classes,
        "digest": bytes_digest(rows),
    }
    return Texts(rows, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode("ascii"))


def decode(texts: Texts, where: str, held_out: Iterable[str] = ()) -> Buffer:
    """The buffer that was encoded.

    where: the folder, for messages. Raises FormatError where the texts are damaged, do not belong
    together, or hold a row of `held_out`.
    """
    manifest = _manifest(texts.manifest, f"{where}/{MANIFEST}")
    if bytes_digest(texts.rows) != manifest["digest"]:
        raise FormatError(
            "the replay buffer's rows are not those that its manifest names",
            detail=f"{where}/{ROWS}: its digest differs from the one in {MANIFEST}",
            hint="copy both files again from where they were made, or train without the buffer",
        )
    forbidden = set(held_out)
    buffer = Buffer(manifest["capacity"], manifest["seed"], manifest["policy"])
    for number, line in enumerate(texts.rows.decode("ascii").splitlines(), start=1):
        kept = _kept(line, f"{where}/{ROWS}: line {number}")
        if kept.row.id in forbidden:
            raise FormatError(
                "the replay buffer holds a validation row",
                detail=f"{where}/{ROWS}: line {number}: row {kept.row.id}",
                hint="validate on rows that no earlier task was trained on",
            )
        if not buffer.add(kept.row, kept.label, kept.task, kept.step):
            raise FormatError(
                "the replay buffer holds more rows than its capacity",
                detail=f"{where}/{ROWS}: line {number}; capacity {buffer.capacity}",
            )
    if len(buffer) != manifest["rows"] or buffer.describe().classes != manifest["classes"]:
        raise FormatError(
            "the replay buffer's rows and its manifest disagree",
            detail=f"{where}: {len(buffer)} rows read, {manifest['rows']} recorded",
        )
    buffer.seen = manifest["seen"]
    buffer.hold_out(forbidden)
    return buffer


def _entry(kept: Kept) -> dict[str, Any]:
    row = kept.row
    return {
        "id": row.id,
        "kind": row.kind,
        "content": dict(row.content),
        "where": row.where,
        "label": kept.label,
        "task": kept.task,
        "step": kept.step,
    }


def _kept(line: str, where: str) -> Kept:
    try:
        entry = json.loads(line)
        row = Row(entry["kind"], entry["content"], entry["where"], entry["id"])
        kept = Kept(row, entry["label"], entry["task"], entry["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            "a line of the replay buffer cannot be read", detail=f"{where}: {error!r:.200}"
        ) from None
    texts = isinstance(kept.task, str) and isinstance(kept.label, str | None)
    if not texts or type(kept.step) is not int or row.kind not in get_args(Kind):
        raise FormatError("a line of the replay buffer is malformed", detail=where)
    if not isinstance(row.content, dict) or row_id(row.content) != row.id:
        raise FormatError(
            "a row of the replay buffer is not what its id names",
            detail=f"{where}: row {row.id!r:.40}",
        )
    return kept


def _manifest(content: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise FormatError(
            "the manifest of a replay buffer is no JSON", detail=f"{where}: {error}"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FormatError(
            "this is no manifest of a replay buffer that can be read here",
            detail=f"{where}: wanted format {FORMAT}",
        )
    counts = ("capacity", "seed", "seen", "rows")
    fine = all(type(manifest.get(key)) is int for key in counts) and manifest["capacity"] >= 1
    if not fine or manifest.get("policy") not in POLICIES:
        raise FormatError(
            "the manifest of a replay buffer is malformed",
            detail=f"{where}: {', '.join(counts)} must be whole numbers, "
            f"policy one of {', '.join(POLICIES)}",
        )
    return manifest


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
