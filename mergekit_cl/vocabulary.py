"""Inputs whose vocabularies have different sizes: which tensors that is, and what rows are merged.

Rows are a prefix of the flat tensor, so that fewer of them are fewer elements from the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.config import vocabulary_size
from mergekit_cl.errors import MismatchError

Vocab = Literal["error", "common", "base"]

ALWAYS = (
    "*embed_tokens.weight",
    "*wte.weight",
    "*word_embeddings.weight",
    "*embed_in.weight",
    "*lm_head.weight",
    "*lm_head.bias",
    "*embed_out.weight",
)
# Names that other layers have too: the vocabulary's only where the config gives its size.
IF_OF_ITS_SIZE = ("*output.weight", "*shared.weight", "*predictions.*", "*vocab_projector.*")


@dataclass(frozen=True)
class Resized:
    """rows: {tensor: rows that all inputs have}. smallest: number of the input with the fewest."""

    rows: Mapping[str, int] = field(default_factory=dict)
    smallest: int = 0

    def shape(self, name: str, tensor: TensorInfo) -> tuple[int, ...]:
        """The shape of the part of a tensor, merged under `name`, that all inputs have."""
        rows = self.rows.get(name)
        return tensor.shape if rows is None else (rows, *tensor.shape[1:])


def find_resized(checkpoints: Sequence[Checkpoint]) -> Resized:
    """The vocabulary tensors that differ between the inputs in nothing but their rows."""
    rows = {}
    smallest = 0
    for name, first in checkpoints[0].tensors.items():
        found = [c.tensors[name] for c in checkpoints if name in c.tensors]
        if all(tensor.shape == first.shape for tensor in found):
            continue
        counts = [tensor.shape[0] for tensor in found if tensor.shape]
        if (
            len(counts) == len(checkpoints)
            and len(set(counts)) > 1
            and min(counts) > 0
            and all(t.is_float and t.shape[1:] == first.shape[1:] for t in found)
            and all(is_vocabulary(c, t) for c, t in zip(checkpoints, found, strict=True))
        ):
            rows[name] = min(counts)
            smallest = counts.index(min(counts))
    return Resized(rows, smallest)


def is_vocabulary(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    """Whether a tensor has a row per token, by its name."""
    if any(fnmatchcase(tensor.name, name) for name in ALWAYS):
        return True
    size = vocabulary_size(checkpoint.config or {})
    return tensor.shape[:1] == (size,) and any(fnmatchcase(tensor.name, n) for n in IF_OF_ITS_SIZE)


def check_one_size(checkpoints: Sequence[Checkpoint], resized: Resized) -> None:
    """Raise MismatchError where an input's vocabulary tensors have different numbers of rows."""
    for checkpoint in checkpoints:
        counts = {name: checkpoint.tensors[name].shape[0] for name in resized.rows}
        if len(set(counts.values())) > 1:
            raise MismatchError(
                "an input's vocabulary has several sizes",
                detail=f"{checkpoint.path}: "
                + ", ".join(f"{name}: {rows} rows" for name, rows in counts.items()),
                hint="resize its embedding and its head alike",
            )


def describe(checkpoints: Sequence[Checkpoint], resized: Resized, vocab: Vocab) -> str:
    """What is done with vocabularies of different sizes, as a note."""
    count = f"{len(resized.rows)} vocabulary tensors"
    rows = min(resized.rows.values())
    first = checkpoints[0]
    more = first.tensors[next(iter(resized.rows))].shape[0] - rows
    if vocab == "base":
        tail = f", the other {more} are those of {first.path}" if more else ""
        return f"{count}: the first {rows} rows are merged{tail}"
    smallest = checkpoints[resized.smallest].path
    return f"{count} are cut to the {rows} rows that all inputs have; the tokenizer is {smallest}'s"
