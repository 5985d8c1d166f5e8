"""What a stream knows of the tensors it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergekit_cl.digest import tensor_digest
from mergekit_cl.divergence.sums import Sums, total


class TensorResult(NamedTuple):
    """What is known of an output tensor: digests of it and its operands, sums per parent."""

    digest: str
    operand_digests: tuple[str, ...]
    sums: tuple[Sums, ...]


@dataclass(frozen=True)
class SpanResult:
    """32-byte digests of the 16 MiB pieces of output and operands, and sums [block][parent]."""

    pieces: list[bytes]
    operand_pieces: list[list[bytes]]
    block_sums: list[list[Sums]]
    bytes_moved: int


def join(parts: Sequence[SpanResult]) -> TensorResult:
    """The result of a tensor from those of its spans, in their order."""
    operands = range(len(parts[0].operand_pieces))
    return TensorResult(
        tensor_digest(piece for part in parts for piece in part.pieces),
        tuple(
            tensor_digest(piece for part in parts for piece in part.operand_pieces[k])
            for k in operands
        ),
        tuple(
            total([block[parent] for part in parts for block in part.block_sums])
            for parent in range(len(parts[0].block_sums[0]) if parts[0].block_sums else 0)
        ),
    )
