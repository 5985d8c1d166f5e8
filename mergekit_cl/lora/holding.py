"""What an adapter holds of each tensor that changed: factors, all of it, or nothing, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mergekit_cl.lora.difference import Candidate, Role
from mergekit_cl.plan import Selection

Kept = Literal["factors", "whole", "left out"]


@dataclass(frozen=True)
class Wanted:
    """What to extract.

    embeddings, convolutions: factor those too. save_rest: keep changed norms and the like whole.
    """

    selection: Selection
    embeddings: bool = False
    convolutions: bool = False
    save_rest: bool = False

    @property
    def roles(self) -> frozenset[Role]:
        """Kinds of weights that are factored."""
        asked: dict[Role, bool] = {
            "linear": True,
            "embedding": self.embeddings,
            "convolution": self.convolutions,
        }
        return frozenset(role for role, is_asked in asked.items() if is_asked)


class Held(NamedTuple):
    """kept: what becomes of a tensor. why: of one that is left out."""

    candidate: Candidate
    kept: Kept
    why: str | None = None


def hold(changed: Sequence[Candidate], wanted: Wanted) -> list[Held]:
    """What becomes of each tensor that changed."""
    factored = {c.module for c in changed if _is_factored(c, wanted)}
    return [_held(candidate, wanted, factored) for candidate in changed]


def _is_factored(candidate: Candidate, wanted: Wanted) -> bool:
    return candidate.role in wanted.roles and candidate.name in wanted.selection


def _held(candidate: Candidate, wanted: Wanted, factored: set[str]) -> Held:
    if _is_factored(candidate, wanted):
        return Held(candidate, "factors")
    if candidate.name not in wanted.selection:
        return Held(candidate, "left out", "not selected")
    if candidate.module in factored:
        return Held(candidate, "left out", "a layer with factors cannot be saved whole too")
    if not candidate.module:
        return Held(candidate, "left out", "it belongs to no module")
    if wanted.save_rest:
        return Held(candidate, "whole")
    if candidate.role == "embedding":
        return Held(candidate, "left out", "an embedding: --embeddings factors it")
    if candidate.role == "convolution":
        return Held(candidate, "left out", "a convolution: --convolutions factors it")
    if candidate.role == "experts":
        why = "stacked experts, which are not factored: --save-rest keeps them whole"
        return Held(candidate, "left out", why)
    return Held(candidate, "left out", "no matrix: --save-rest keeps it whole")
