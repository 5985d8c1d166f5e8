"""Which tensor of a checkpoint's file an adapter's key means, and the rule that says so.

A model's modules have other names in transformers 5 than the files of transformers 4, and a file of
the bare model lacks the prefix that the model with a head gives it. A rule is tried only where all
before it found nothing, and one that finds several tensors is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import MismatchError

SAME = "same name"

# (transformers 5, transformers 4): both ways, since either side may be the older one.
PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("model.language_model.", "language_model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
)
INSIDE = (
    (".mlp.experts.", ".block_sparse_moe.experts."),
    (".mlp.gate.", ".block_sparse_moe.gate."),
)
EXPERT_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Stacked experts: the tensors of one expert whose rows follow each other in them, by spelling."""


class Found(NamedTuple):
    """A tensor of the file, and the rule that found it."""

    info: TensorInfo
    rule: str


class Piecewise(NamedTuple):
    """One tensor of a file that holds some rows of one expert of a stack."""

    info: TensorInfo
    expert: int
    rows: tuple[int, int]
    rule: str


class KeyMap:
    """Finds tensors of one checkpoint by the names that adapters use."""

    def __init__(self, base: Checkpoint) -> None:
        self.path = base.path
        self.tensors = base.tensors
        self._aliases = base.aliases

    def find(self, name: str) -> Found | None:
        """The tensor a name means; raises MismatchError where it may be several."""
        if (info := self._held(name)) is not None:
            return Found(info, SAME)
        found: dict[str, Found] = {}
        for other, rule in _spellings(name):
            if (info := self._held(other)) is not None:
                found.setdefault(info.name, Found(info, rule))
        if not found:
            for other in self.tensors:
                if other.endswith("." + name):
                    rule = f"with the prefix {other.removesuffix(name)}"
                    found[other] = Found(self.tensors[other], rule)
                elif name.endswith("." + other):
                    rule = f"without the prefix {name.removesuffix(other)}"
                    found[other] = Found(self.tensors[other], rule)
        if len(found) > 1:
            raise MismatchError(
                "a key of the adapter may mean several tensors of the base",
                detail=f"{name}: {', '.join(sorted(found))}",
            )
        return next(iter(found.values()), None)

    def find_experts(self, module: str, parameter: str, experts: int) -> list[Piecewise]:
        """The tensors, one or two per expert, that transformers 5 stacks into one parameter.

        Empty where the file holds other things. Rows are those of the stacked parameter.
        """
        for parts in EXPERT_PARTS.get(parameter, ()):
            found = []
            for expert in range(experts):
                begin = 0
                for part in parts:
                    one = self.find(f"{module}.{expert}.{part}.weight")
                    if one is None:
                        break
                    rows = (begin, begin + one.info.shape[0])
                    rule = f"expert {expert} of {parameter}; {one.rule}"
                    found.append(Piecewise(one.info, expert, rows, rule))
                    begin = rows[1]
            if len(found) == experts * len(parts):
                return found
        return []

    def count_experts(self, module: str, parameter: str) -> int:
        """How many experts a module has tensors of their own of."""
        for parts in EXPERT_PARTS.get(parameter, ()):
            count = 0
            while self.find(f"{module}.{count}.{parts[0]}.weight") is not None:
                count += 1
            if count:
                return count
        return 0

    def nearest(self, name: str) -> list[str]:
        """Up to three names of the file that are spelled like this one."""
        return get_close_matches(name, self.tensors, n=3, cutoff=0.3)

    def _held(self, name: str) -> TensorInfo | None:
        return self.tensors.get(self._aliases.get(name, name))


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    """Other names of the same tensor, each with the rule."""
    for outer, first in [(name, ""), *_swapped(name, PREFIXES, at_start=True)]:
        if first:
            yield outer, first
        for inner, second in _swapped(outer, INSIDE, at_start=False):
            yield inner, f"{first}; {second}" if first else second


def _swapped(
    name: str, pairs: Iterable[tuple[str, str]], *, at_start: bool
) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        for old, new in (pair, pair[::-1]):
            if name.startswith(old) if at_start else old in name:
                yield name.replace(old, new, 1), f"{new.strip('.')} for {old.strip('.')}"
