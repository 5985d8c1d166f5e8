"""Parameters of a model under FSDP2, which stands whole ones in for its shards while it computes.

Seen without FSDP's own code: whatever parameter objects a module holds when its forward begins are
what it computes with, also when gradient checkpointing repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fisher.counted import Counted


@contextmanager
def following(model: nn.Module, counted: Counted) -> Iterator[None]:
    """Within, `counted.names` also knows what stands in for its parameters."""
    held: list[nn.Parameter] = []  # alive, so that no other gets its id
    handles = []
    before = dict(counted.names)
    for prefix, module in model.named_modules():
        known = {}
        for name, _ in module.named_parameters(remove_duplicate=False):
            whole = f"{prefix}.{name}" if prefix else name
            canonical = counted.tied.get(whole, whole)
            if canonical in counted.parameters:
                known[name] = canonical

        def note(module: nn.Module, args: Any, known: dict[str, str] = known) -> None:
            for name, parameter in module.named_parameters(remove_duplicate=False):
                if name in known:
                    counted.names[id(parameter)] = known[name]
                    held.append(parameter)

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        counted.names.clear()
        counted.names.update(before)
