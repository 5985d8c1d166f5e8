"""What of a checkpoint is not as recorded: comparisons of names, forms, digests and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mergekit_cl.checkpoint import TensorInfo
from mergekit_cl.digest import weights_digest
from mergekit_cl.recorded import Recorded

Kind = Literal[
    "changed",
    "missing",
    "added",
    "dtype",
    "shape",
    "weights_digest",
    "file_missing",
    "file_added",
    "file_size",
    "file_header",
    "file_unreadable",
    "fisher_stale",
    "fisher_weights_digest",
    "fisher_unreadable",
    "carry_stale",
    "carry_unreadable",
    "undo_stale",
    "undo_changed",
    "undo_unreadable",
    "divergence_verdict",
    "divergence_unreadable",
]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as recorded; name: of the tensor or file, none for the whole."""

    kind: Kind
    name: str
    recorded: Any = None
    found: Any = None


@dataclass(frozen=True)
class ReadWeights:
    """What could be read of a checkpoint: tensors, their digests, {file: (bytes, header digest)}.

    whole: whether that is all of it.
    """

    tensors: Mapping[str, TensorInfo]
    digests: Mapping[str, str]
    files: Mapping[str, tuple[int, str]]
    nbytes: int
    whole: bool

    @cached_property
    def weights_digest(self) -> str | None:
        """The digest of the whole checkpoint; None where not all of it could be read."""
        if not self.whole:
            return None
        return weights_digest(
            (t.name, t.dtype, t.shape, self.digests[t.name]) for t in self.tensors.values()
        )


def compare_files(recorded: Recorded, read: ReadWeights) -> Iterator[Difference]:
    """Files that were read but are not as recorded, and ones more or fewer where all were read."""
    for name, (nbytes, header) in recorded.files.items():
        if name not in read.files:
            if read.whole:
                yield Difference("file_missing", name)
            continue
        found_bytes, found_header = read.files[name]
        if found_bytes != nbytes:
            yield Difference("file_size", name, nbytes, found_bytes)
        if found_header != header:
            yield Difference("file_header", name, header, found_header)
    for name in read.files:
        if name not in recorded.files:
            yield Difference("file_added", name)


def compare_tensors(recorded: Recorded, read: ReadWeights) -> Iterator[Difference]:
    """Tensors that are missing, more than recorded, of another dtype or shape, or changed."""
    for name, tensor in recorded.tensors.items():
        found = read.tensors.get(name)
        if found is None:
            yield Difference("missing", name, tensor.digest)
            continue
        if found.dtype != tensor.dtype:
            yield Difference("dtype", name, tensor.dtype, found.dtype)
        if found.shape != tensor.shape:
            yield Difference("shape", name, list(tensor.shape), list(found.shape))
        digest = read.digests[name]
        if digest != tensor.digest:
            yield Difference("changed", name, tensor.digest, digest)
    for name in read.tensors:
        if name not in recorded.tensors:
            yield Difference("added", name, None, read.digests[name])
    whole = read.weights_digest
    if whole is not None and whole != recorded.weights_digest:
        yield Difference("weights_digest", "", recorded.weights_digest, whole)


def sidecar_digests(metadata: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """Digests of the weights a Fisher was taken at: {tensor: digest}, and of the whole."""
    tensors = {
        name: entry["digest"]
        for name, entry in metadata["tensors"].items()
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str)
    }
    whole = metadata.get("weights_digest")
    return tensors, whole if isinstance(whole, str) else None


def compare_sidecar(
    name: str, expected: Mapping[str, str], whole: str | None, read: ReadWeights
) -> Iterator[Difference]:
    """Weights that are not those a Fisher was taken at; name: of the sidecar's file."""
    for tensor, digest in expected.items():
        found = read.digests.get(tensor)
        if found != digest:
            yield Difference("fisher_stale", tensor, digest, found)
    found = read.weights_digest
    if whole is not None and found is not None and found != whole:
        yield Difference("fisher_weights_digest", name, whole, found)
