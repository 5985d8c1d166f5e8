"""A sidecar written part by part, at places planned before any of it is computed.

The header comes first in the file and holds sums of what follows it. Its length is therefore
planned with the longest numbers it could hold, and its end filled with spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisher.sidecar import encode_metadata, statistics
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.arrays import as_bytes
from mergekit_cl.estimating.store import rounded
from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.output.shards import ShardFiles

if TYPE_CHECKING:
    import torch

LONGEST = 2.2250738585072014e-308
"""No float takes more characters in JSON, a sign apart."""


class SidecarParts:
    """The files of a sidecar whose tensors come in any order.

    names: every tensor it will hold. metadata: as it will be, `LONGEST` for numbers not known yet.
    described: {name: what is known besides its statistics}, likewise.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        names: Sequence[str],
        metadata: Mapping[str, Any],
        described: Mapping[str, Mapping[str, Any]],
        *,
        dtype: str,
        stem: str,
        shard_size: int,
    ) -> None:
        self._folder, self._checkpoint, self._dtype = folder, checkpoint, dtype
        self._names, self._stem, self._shard_size = names, stem, shard_size
        unknown = {"sum": LONGEST, "sum_squares": LONGEST, "max": LONGEST, "zero_share": LONGEST}
        longest = {
            name: {**unknown, "count": checkpoint.tensors[name].numel, **described.get(name, {})}
            for name in names
        }
        planned = self._lay_out(_whole(metadata, longest), ())
        self._lengths = [len(shard.header.raw) for shard in planned.shards]
        self._files = ShardFiles(folder, planned)
        self._place = {
            tensor.name: (shard.file, tensor.offset)
            for shard in planned.shards
            for tensor in shard.header.tensors
        }
        for shard in planned.shards:
            self._files.reopen(shard)

    def write(self, diagonal: Iterable[tuple[str, torch.Tensor]]) -> dict[str, dict[str, Any]]:
        """Put (file tensor, float32 means) in place, for good; gives their statistics."""
        found = {}
        for name, values in diagonal:
            if name not in self._place:
                continue
            stored = rounded(name, values, self._dtype)
            file, offset = self._place[name]
            self._files.writer(file, offset)(as_bytes(stored.reshape(-1)), 0)
            found[name] = statistics(stored)
        self._files.sync()
        return found

    def finish(
        self, metadata: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Layout, dict[str, Any]]:
        """Write the headers and close the files; returns their layout and the whole metadata."""
        whole = _whole(metadata, {name: described[name] for name in self._names})
        layout = self._lay_out(whole, self._lengths)
        for shard in layout.shards:
            assert len(shard.header.raw) == self._lengths[layout.shards.index(shard)]
            self._files.writer(shard.file, 0)(memoryview(shard.header.raw), 0)
            self._files.finish(shard.file)
        if layout.index is not None:
            (self._folder / layout.index_name).write_bytes(layout.index)
        return layout, whole

    def close(self) -> None:
        """Close what is open; what is written stays."""
        self._files.close()

    def _lay_out(self, whole: Mapping[str, Any], lengths: Sequence[int]) -> Layout:
        return lay_out(
            [(name, self._dtype, self._checkpoint.tensors[name].shape) for name in self._names],
            stem=self._stem,
            shard_size=self._shard_size,
            metadata=encode_metadata(whole),
            header_bytes=lengths,
        )


def _whole(metadata: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **metadata,
        "tensors": {name: {"kind": "diagonal", **entry} for name, entry in tensors.items()},
    }
