"""What a streamed estimate takes, from the shapes of a model and the lengths of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fisher.layered.stack import Stack, find_stack

if TYPE_CHECKING:
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel

IN_MEMORY = 2**28
"""Bytes of activations between layers up to which they stay in memory; above, they are files."""


@dataclass(frozen=True)
class Streams:
    """Bytes, but for layers.

    layer: the largest layer's weights with their Fisher. outside: the larger of head and embeddings
    with theirs. activations: what waits between layers of all rows; in_memory: where. gradients:
    what waits there on the way back, in files. written: the sidecar.
    """

    layers: int
    layer: int
    outside: int
    activations: int
    in_memory: bool
    gradients: int
    written: int

    @property
    def memory(self) -> int:
        """What is held at once, besides what one batch takes within a layer."""
        return max(self.layer, self.outside) + (self.activations if self.in_memory else 0)

    @property
    def on_disk(self) -> int:
        """What temporary files take."""
        return self.gradients + (0 if self.in_memory else self.activations)


def streams(
    built: BuiltModel, encoded: Encoded, batch_size: int, passes: int, store_dtype: str
) -> Streams:
    """What it takes to stream a model whose parameters are on the meta device.

    passes: backward passes per batch.
    """
    model: Any = built.model
    stack = find_stack(model)
    item = built.dtype.itemsize
    sizes = dict(_sizes(model, stack))
    per_weight = item + max(4, item)
    # One boundary: padded positions of all rows, as wide as the model.
    width = int(model.config.get_text_config().hidden_size)
    positions = sum(batch.inputs["input_ids"].numel() for batch in encoded.batches(batch_size))
    boundary = positions * width * item
    activations = boundary * (len(stack) + 1)
    return Streams(
        layers=len(stack),
        layer=per_weight * max(sizes[index] for index in range(len(stack))),
        outside=per_weight * max(sizes["embeddings"], sizes["others"]),
        activations=activations,
        in_memory=activations <= IN_MEMORY,
        # Of two boundaries at once, and a tied weight's sums and rows.
        gradients=2 * passes * boundary + passes * boundary + 4 * sizes["embeddings"],
        written=built.parameters * (2 if store_dtype == "BF16" else 4),
    )


def _sizes(model: Any, stack: Stack) -> Iterator[tuple[int | str, int]]:
    """Elements per layer, of the input embeddings, and of all else (tied ones in both)."""
    found: dict[int | str, int] = {"embeddings": 0, "others": 0}
    entry = model.get_input_embeddings().weight
    found["embeddings"] = entry.numel()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = stack.index_of(name)
        if place is not None:
            found[place] = found.get(place, 0) + parameter.numel()
        elif parameter is not entry or "embed" not in name:
            found["others"] += parameter.numel()
    yield from found.items()
