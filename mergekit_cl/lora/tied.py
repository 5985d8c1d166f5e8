"""A head that is the embedding's own tensor, and what becomes of it where one of the two is edited.

An adapter acts on a module, not on a tensor: one on the head leaves the embedding alone, and the
other way round. So the head gets a tensor of its own, and the config says so. Where both change
alike, as trained tokens do, they stay one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import InputError
from mergekit_cl.lora.adapter import CONFIG, Adapter
from mergekit_cl.lora.edits import Edit, Replace, Rows
from mergekit_cl.ties import BIASES, EMBEDDINGS, HEADS, SHARED, ends_with, says_tied

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
MASKED = (
    ("cls.predictions.", "cls.predictions.decoder.weight"),
    ("lm_head.dense.", "lm_head.decoder.weight"),
)
NEOX = ("gpt_neox", "gpt_neox_japanese")

Edits = tuple[Adapter, list[Edit]]
Equal = Callable[[Adapter, str, str], bool]
"""(adapter, tensor, tensor) -> whether the two hold the same values."""


class TiedHead(NamedTuple):
    """head: its name. anchor: the embedding. stored: whether the file has a copy for the head."""

    head: str
    anchor: TensorInfo
    stored: bool


class Settled(NamedTuple):
    """Edits as they are to be done; materialised: {head the file lacks: the embedding's name}."""

    edits: list[Edits]
    materialised: dict[str, str]
    unties: bool


def tied_head(base: Checkpoint) -> TiedHead | None:
    """The head of a model that ties it to its embedding; None where there is no such thing."""
    anchors = [info for name, info in base.tensors.items() if ends_with(name, (SHARED,))]
    anchors = anchors or [i for name, i in base.tensors.items() if ends_with(name, EMBEDDINGS)]
    if len(anchors) != 1:
        return None
    said = says_tied(base.config)
    heads = [name for name in base.tensors if ends_with(name, HEADS)]
    if heads:
        is_tied = said is True and len(heads) == 1
        return TiedHead(heads[0], anchors[0], stored=True) if is_tied else None
    head = None if said is False else _head_of(base)
    return None if head is None else TiedHead(head, anchors[0], stored=False)


def virtual(base: Checkpoint, tied: TiedHead | None) -> dict[str, TensorInfo]:
    """The head, and its bias, that the file lacks, as an adapter may name them."""
    found = {copy: info._replace(name=copy) for copy, info in _tied_biases(base).items()}
    if tied is not None and not tied.stored:
        found[tied.head] = tied.anchor._replace(name=tied.head)
    return found


def without_copies(
    base: Checkpoint, adapter: Adapter, edits: list[Edit], equal: Equal
) -> list[Edit]:
    """The edits without those of a bias that is another one under a second name.

    Raises InputError where the two would become different.
    """
    kept = list(edits)
    by_name = {edit.name: edit for edit in edits if isinstance(edit, Replace)}
    for copy, info in _tied_biases(base).items():
        other, own = by_name.get(copy), by_name.get(info.name)
        if other is None:
            continue
        if own is None or not equal(adapter, own.tensor, other.tensor):
            raise InputError(
                "the adapter changes a bias that is another one too",
                detail=f"{adapter.path}: {copy} and {info.name}",
            )
        kept.remove(other)
    return kept


def _tied_biases(base: Checkpoint) -> dict[str, TensorInfo]:
    """{second name the file lacks: the tensor}."""
    return {
        name.removesuffix(first) + second: info
        for first, second in BIASES.items()
        for name, info in base.tensors.items()
        if ends_with(name, (first,)) and name.removesuffix(first) + second not in base.tensors
    }


def settle(tied: TiedHead | None, edits: Sequence[Edits], equal: Equal) -> Settled:
    """Decide whether head and embedding stay one tensor.

    Raises InputError where they would have to part and cannot.
    """
    plain = Settled(list(edits), {}, unties=False)
    if tied is None:
        return plain
    anchor = tied.anchor.name
    both = [(a, e) for a, own in edits for e in own if e.name in (anchor, tied.head)]
    if not both:
        return plain
    if _change_alike(tied, both, equal):
        return Settled([(a, _alike(tied, own)) for a, own in edits], {}, unties=False)
    adapter = both[0][0]
    if ends_with(anchor, (SHARED,)):
        raise InputError(
            "a model of this kind cannot have a head of its own, and the adapter needs one",
            detail=f"{adapter.path}: {both[0][1].name}, tied to {anchor}",
        )
    if any(a.config.get("ensure_weight_tying") for a, _ in both):
        raise InputError(
            "the adapter ties head and embedding, but does not change them alike",
            detail=f"{adapter.path / CONFIG}: ensure_weight_tying; {both[0][1].name}",
        )
    if any(isinstance(edit, Rows) for _, edit in both):
        raise InputError(
            "trained tokens of a tied embedding cannot be joined with other changes of its head",
            detail=f"{adapter.path}: {anchor} and {tied.head}",
        )
    return Settled(list(edits), {} if tied.stored else {tied.head: anchor}, unties=True)


def _change_alike(tied: TiedHead, both: list[tuple[Adapter, Edit]], equal: Equal) -> bool:
    anchor = tied.anchor.name
    if all(isinstance(edit, Rows) and edit.name == anchor for _, edit in both):
        return True
    replaced = {edit.name: (a, edit.tensor) for a, edit in both if isinstance(edit, Replace)}
    if len(replaced) != len(both):
        return False
    if replaced.keys() == {anchor}:
        return bool(replaced[anchor][0].config.get("ensure_weight_tying"))
    if replaced.keys() != {anchor, tied.head}:
        return False
    (adapter, first), (other, second) = replaced[anchor], replaced[tied.head]
    return adapter is other and equal(adapter, first, second)


def _alike(tied: TiedHead, own: list[Edit]) -> list[Edit]:
    """The edits of the one tensor that both are; of both copies where the file has two."""
    kept = [edit for edit in own if edit.name != tied.head]
    if not tied.stored:
        return kept
    copies = [
        replace(edit, name=tied.head)
        for edit in kept
        if edit.name == tied.anchor.name and isinstance(edit, (Replace, Rows))
    ]
    return [*kept, *copies]


def _head_of(base: Checkpoint) -> str | None:
    """What transformers calls the head of a model whose file lacks it."""
    config = base.config or {}
    kinds = config.get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    if kind.endswith(("ForMaskedLM", "ForPreTraining")):
        for part, head in MASKED:
            if any(part in name for name in base.tensors):
                return head
        return None
    if not kind.endswith(WITH_HEAD):
        return None
    return "embed_out.weight" if config.get("model_type") in NEOX else "lm_head.weight"
