"""Which tensor of a checkpoint's file an adapter's key means, and the rule that says so.

A model's modules have other names in transformers 5 than the files of transformers 4, and a file of
the bare model lacks the prefix that the model with a head gives it. A rule is tried only where all
before it found nothing, and one that finds several tensors is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import MismatchError

SAME = "same name"
OTHER_VERSION = "the name that another version of transformers has for it"

# Old spelling to new one, in order; both sides of a comparison are spelled so.
RENAMED = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (
            r"^(language_model|text_model|visual|multi_modal_projector|image_newline|vqmodel"
            r"|(?:vision|audio|image|video)_(?:tower|model))\b",
            r"model.\1",
        ),
        # The text model of a newer vision model is where the older one had its layers.
        (r"^model\.language_model\.", "model."),
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\bencoder\.layer\.", "layers."),
        (r"\battention\.(?:attention|self)\.query\.", "attention.q_proj."),
        (r"\battention\.(?:attention|self)\.key\.", "attention.k_proj."),
        (r"\battention\.(?:attention|self)\.value\.", "attention.v_proj."),
        (r"\battention\.output\.dense\.", "attention.o_proj."),
        (r"\bintermediate\.dense\.", "mlp.fc1."),
        (r"\boutput\.dense\.", "mlp.fc2."),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
    )
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
    """Finds tensors of one checkpoint by the names that adapters use.

    tied: tensors that the model has under names of their own, and the file does not.
    """

    def __init__(self, base: Checkpoint, tied: Mapping[str, TensorInfo] | None = None) -> None:
        self.path = base.path
        self.tensors = {**base.tensors, **(tied or {})}
        self._aliases = base.aliases
        self._by_modern: dict[str, list[str]] = {}
        for name in self.tensors:
            self._by_modern.setdefault(modern(name), []).append(name)

    def find(self, name: str) -> Found | None:
        """The tensor a name means; raises MismatchError where it may be several."""
        if (info := self._held(name)) is not None:
            return Found(info, SAME)
        wanted = modern(name)
        spelled = self._by_modern.get(wanted, [])
        found = dict.fromkeys(spelled, OTHER_VERSION)
        if not found:
            head, _, rest = wanted.partition(".")
            for modern_name, others in self._by_modern.items():
                before, _, tail = modern_name.partition(".")
                if tail == wanted:
                    found.update(dict.fromkeys(others, f"with the prefix {before}"))
                elif modern_name == rest:
                    found.update(dict.fromkeys(others, f"without the prefix {head}"))
        if len(found) > 1:
            raise MismatchError(
                "a key of the adapter may mean several tensors of the base",
                detail=f"{name}: {', '.join(sorted(found))}",
            )
        return next((Found(self.tensors[n], rule) for n, rule in found.items()), None)

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


def modern(name: str) -> str:
    """A name as transformers 5 spells it, or near to that: equal for names that mean the same."""
    for old, new in RENAMED:
        name = old.sub(new, name)
    return name
