"""Which tensors people think of together."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^(.*?\.?(?:layers?|h|blocks?|encoder|decoder|convs|stages?)\.\d+)(?:\.|$)")


def layer_of(name: str) -> str:
    """The layer of a tensor: up to its first numbered block, else its module.

    'model.layers.3.mlp.up_proj.weight' -> 'model.layers.3'; 'lm_head.weight' -> 'lm_head'.
    """
    block = _BLOCK.match(name)
    if block:
        return block.group(1)
    return name.rpartition(".")[0] or name
