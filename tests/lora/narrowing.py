"""A merge of a cell once more in a narrower dtype: rounded once, and taken back to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergekit_cl.lora.undo import Undo
from tests.exactly import nearest_all
from tests.lora.merging import merge, same, unmerge

WEIGHTS = "model.safetensors"


class Way(NamedTuple):
    """dtype: of the base. undo: what is kept to take it back. carry: keep residuals."""

    dtype: torch.dtype
    undo: Undo
    carry: bool


WAYS = tuple(
    Way(dtype, undo, carry)
    for carry in (False, True)
    for undo in ("base", "xor")
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
)


def trouble(
    place: Path, base: Path, adapters: Sequence[Path], exact: Mapping[str, Tensor], way: Way
) -> str:
    """What is wrong with the merge into the base in a narrower dtype; nothing is "".

    exact: the merged tensors in float64, of a base of the same values.
    """
    narrow = place / f"narrow {way}"
    shutil.copytree(base, narrow / "base")
    tensors = {
        name: value.to(way.dtype) if value.is_floating_point() else value
        for name, value in load_file(base / WEIGHTS).items()
    }
    save_file(tensors, narrow / "base" / WEIGHTS, {"format": "pt"})
    merge(narrow / "base", adapters, narrow / "merged", undo=way.undo, carry=way.carry)
    for name, value in load_file(narrow / "merged" / WEIGHTS).items():
        if value.is_floating_point() and name in tensors:
            wanted = nearest_all(exact[name], way.dtype)
            if value.dtype != way.dtype or not torch.equal(value.double(), wanted):
                return f"{way}: {name} is not the exact result rounded once"
    if way.undo == "xor":
        (narrow / "base").rename(narrow / "away")
    unmerge(narrow / "merged", narrow / "back")
    before = narrow / ("away" if way.undo == "xor" else "base")
    return "" if same(before, narrow / "back") else f"{way}: not taken back"
