"""What an adapter does to the tensors of a file, as a short list of typed edits.

Every edit names one tensor of the file and the tensors of the adapter that it uses up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["linear", "transposed", "convolution", "embedding"]
"""How down (r, in) and up (out, r) make an update of W.

linear: W (out, in) += up @ down. transposed: W (in, out) += (up @ down)^T, as Conv1D stores it.
convolution: the same as linear with W, up and down flattened behind their first dimension.
embedding: W (vocabulary, width) += (up @ down)^T.
"""


@dataclass(frozen=True)
class Slice:
    """The part of factors shared by several experts that one update uses.

    expert of experts: whose. grouped: columns of up are sorted by expert, else by rank. rows: of
    its output, where one factor makes the weights of several tensors.
    """

    expert: int
    experts: int
    grouped: bool = False
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class LowRank:
    """W += scale * up @ down, in `form`, on `rows` x `columns` elements of W from `begin` on.

    blocks_down, blocks_up: blocks of a factor that is stored as a stack of the blocks on its
    diagonal; 1 for a full one. part: of factors that several experts share.
    """

    name: str
    down: str
    up: str
    scale: float
    rank: int
    form: Form
    rows: int
    columns: int
    begin: int = 0
    part: Slice | None = None
    blocks_down: int = 1
    blocks_up: int = 1
    rule: str = ""

    @property
    def uses(self) -> tuple[str, ...]:
        """Tensors of the adapter."""
        return (self.down, self.up)


@dataclass(frozen=True)
class Dora:
    """W = magnitude / norm(V) * V with V the low-rank update of W.

    per: whether norm and magnitude belong to rows or to columns of W; norms are of the base's V,
    whatever other adapters did before.
    """

    update: LowRank
    magnitude: str
    per: Literal["row", "column"]

    @property
    def name(self) -> str:
        """The tensor of the file."""
        return self.update.name

    @property
    def rule(self) -> str:
        """How the name was found."""
        return self.update.rule

    @property
    def uses(self) -> tuple[str, ...]:
        """Tensors of the adapter."""
        return (*self.update.uses, self.magnitude)


@dataclass(frozen=True)
class Bias:
    """b += scale * the bias of the adapter's second factor."""

    name: str
    tensor: str
    scale: float
    rule: str = ""

    @property
    def uses(self) -> tuple[str, ...]:
        """Tensors of the adapter."""
        return (self.tensor,)


@dataclass(frozen=True)
class Rows:
    """Some rows of W, of tokens that were trained, are replaced."""

    name: str
    tensor: str
    indices: tuple[int, ...]
    rule: str = ""

    @property
    def uses(self) -> tuple[str, ...]:
        """Tensors of the adapter."""
        return (self.tensor,)


@dataclass(frozen=True)
class Replace:
    """W, or what the file lacks, is a tensor of the adapter."""

    name: str
    tensor: str
    rule: str = ""

    @property
    def uses(self) -> tuple[str, ...]:
        """Tensors of the adapter."""
        return (self.tensor,)


Edit = LowRank | Dora | Bias | Rows | Replace
