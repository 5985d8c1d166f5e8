"""Whether an output already is what a command would make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError
from mergekit_cl.manifest import describe_input, read_manifest
from mergekit_cl.methods.method import Method
from mergekit_cl.output.target import side_folder


def recorded_run(method: Method, options: Mapping[str, Any], target: Path) -> dict[str, Any] | None:
    """The manifest of an output that this very command made, or None.

    Options and sizes are compared first; then the inputs are read and digested, because a model
    retrained in the same place has the same names and sizes; last the output's files are looked at.
    """
    found = read_manifest(side_folder(target))
    return found if found is not None and is_same_run(found, method, options, target) else None


def is_same_run(
    found: Mapping[str, Any], method: Method, options: Mapping[str, Any], target: str | Path
) -> bool:
    """Whether a manifest says that this very command made the output beside it."""
    if found["command"] != method.command or found["options"] != dict(options):
        return False
    sources = method.sources()
    if len(found["inputs"]) != len(sources):
        return False
    for (role, source), recorded in zip(sources, found["inputs"], strict=True):
        described = describe_input(source, role, None)
        if described["role"] != recorded["role"] or described["files"] != recorded["files"]:
            return False
    if not _is_intact(target, found):
        return False
    for (_, source), recorded in zip(sources, found["inputs"], strict=True):
        digests = checkpoint_digests(source)
        entries = [(t.name, t.dtype, t.shape, digests[t.name]) for t in source.tensors.values()]
        if weights_digest(entries) != recorded["weights_digest"]:
            return False
    return True


def _is_intact(target: str | Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the output's files have the recorded sizes and headers."""
    try:
        with open_checkpoint(target) as output:
            described = describe_input(output, "output", None)
    except InputError:
        return False
    recorded: list[dict[str, Any]] = manifest["outputs"][0]["files"]
    return _by_name(described["files"]) == _by_name(recorded)


def _by_name(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(files, key=lambda file: str(file["name"]))
