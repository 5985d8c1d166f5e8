"""What `clmerge verify` found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from mergekit_cl.differing import Difference
from mergekit_cl.report.amounts import size
from mergekit_cl.report.text import columns, print_lines, shown
from mergekit_cl.verifying import Verification

SHOWN_PER_KIND = 20
LABELS = {
    "changed": "changed tensor",
    "missing": "missing tensor",
    "added": "added tensor",
    "dtype": "other dtype",
    "shape": "other shape",
    "weights_digest": "other weights digest",
    "file_missing": "missing file",
    "file_added": "added file",
    "file_size": "other file size",
    "file_header": "other file header",
    "file_unreadable": "unreadable file",
    "fisher_stale": "Fisher of other weights",
    "fisher_weights_digest": "Fisher of another model",
    "fisher_unreadable": "unreadable sidecar",
    "carry_stale": "residuals of other weights",
    "carry_unreadable": "residuals not readable",
    "undo_stale": "undo of another merge",
    "undo_changed": "undo file changed",
    "undo_unreadable": "undo not readable",
    "divergence_verdict": "another verdict than recorded",
    "divergence_unreadable": "report not readable",
}
_VALUES = ("dtype", "shape", "file_size")


def verify_document(found: Verification) -> dict[str, Any]:
    """The JSON document of a verification."""
    seconds = found.seconds
    return {
        "command": "verify",
        "path": found.path,
        "state": "different" if found.differences else "intact",
        "made_by": found.made_by,
        "sidecar": found.sidecar,
        "tensors": found.tensors,
        "files": found.files,
        "bytes": found.nbytes,
        "weights_digest": found.weights_digest,
        "differences": [asdict(difference) for difference in found.differences],
        "seconds": round(seconds, 3),
        "bytes_per_second": round(found.nbytes / seconds) if seconds else None,
    }


def print_verify(found: Verification) -> None:
    """The same for people, on stdout."""
    by = f" clmerge {shown(found.made_by)} wrote" if found.made_by else " was recorded"
    files = f"{found.files} file{'' if found.files == 1 else 's'}"
    amount = f"{found.tensors} tensors, {size(found.nbytes)} in {files}"
    digest = [f"weights digest {found.weights_digest}"] if found.weights_digest else []
    if not found.differences:
        fisher = [f"{shown(found.sidecar)} was taken at these weights"] if found.sidecar else []
        print_lines([f"{shown(found.path)} is what{by}: {amount}", *fisher, *digest])
        return
    count = len(found.differences)
    lines = [
        f"{shown(found.path)} is not what{by}: {count} difference{'s' if count > 1 else ''}",
        *(f"  {line}" for line in columns(list(_rows(found.differences)))),
    ]
    if all(difference.kind.startswith("file_") for difference in found.differences):
        lines.append("every tensor that could be read is as recorded")
    print_lines([*lines, f"read: {amount}", *digest])


def _rows(differences: Iterable[Difference]) -> Iterable[tuple[str, str]]:
    by_kind: dict[str, list[Difference]] = {}
    for difference in differences:
        by_kind.setdefault(difference.kind, []).append(difference)
    for kind, members in by_kind.items():
        for difference in members[:SHOWN_PER_KIND]:
            yield LABELS[kind], _said(difference)
        if len(members) > SHOWN_PER_KIND:
            yield LABELS[kind], f"and {len(members) - SHOWN_PER_KIND} more (--json lists all)"


def _said(difference: Difference) -> str:
    """The name, and both values where they are short enough to say something."""
    name = shown(difference.name)
    if difference.kind == "weights_digest":
        return f"{shown(difference.recorded)} recorded"
    if difference.kind not in _VALUES and not difference.kind.endswith("_unreadable"):
        return name
    if difference.recorded is None:
        return f"{name}: {shown(difference.found, 200)}"
    return f"{name}: {shown(difference.recorded)} recorded, {shown(difference.found)} found"
