"""Tensors that models tie, such as a head to its embedding: which names stand for one tensor.

Decided from headers. transformers stores a tied tensor once, older tools and plain state dicts
store it under each of its names; which one a file holds then depends on who wrote it. Names are
candidates only: that the values are equal is checked while they are read (`check_equal`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import MismatchError

EMBEDDINGS = (
    "embed_tokens.weight",  # Llama and most after it, OPT
    "wte.weight",  # GPT-2, GPT-J
    "word_embeddings.weight",  # BERT, RoBERTa, Bloom, Falcon
    "tok_embeddings.weight",  # ModernBERT
    "embed_in.weight",  # GPT-NeoX
)
HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "lm_head.decoder.weight",
    "cls.predictions.decoder.weight",
    "predictions.decoder.weight",
    "vocab_projector.weight",
    "generator_lm_head.weight",
)
SHARED = "shared.weight"  # T5, BART: the embedding of encoder and decoder, whatever the config says
SHARES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
BIASES = {"predictions.bias": "predictions.decoder.bias", "lm_head.bias": "lm_head.decoder.bias"}


@dataclass(frozen=True)
class Ties:
    """canonical: {other name: the name it is merged and stored under}."""

    canonical: Mapping[str, str] = field(default_factory=dict)

    def held(self, checkpoint: Checkpoint, name: str) -> TensorInfo | None:
        """The tensor of a checkpoint that is merged under a name, however the file calls it."""
        found = checkpoint.tensors.get(name)
        return found if found is not None else next(self._others(checkpoint, name), None)

    def twins(self, checkpoint: Checkpoint, name: str) -> list[TensorInfo]:
        """Further copies of it in the same checkpoint."""
        held = self.held(checkpoint, name)
        return [other for other in self._others(checkpoint, name) if other is not held]

    def describe(self, checkpoints: Sequence[Checkpoint]) -> list[str]:
        """Notes on what is stored once, though some input stores it twice or elsewhere."""
        return [
            f"{other} is tied to {name}: merged once, stored as {name}"
            for other, name in self.canonical.items()
            if any(other in checkpoint.tensors for checkpoint in checkpoints)
        ]

    def _others(self, checkpoint: Checkpoint, name: str) -> Iterator[TensorInfo]:
        for other, canonical in self.canonical.items():
            if canonical == name and other in checkpoint.tensors:
                yield checkpoint.tensors[other]


def find_ties(checkpoints: Sequence[Checkpoint]) -> Ties:
    """The names that stand for another tensor in this merge.

    Those that some input lacks although another holds them, unless that input's config says that
    they are not tied; and those that all hold where every config says that they are.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for checkpoint in checkpoints:
        for name, tensor in checkpoint.tensors.items():
            if tensor.is_float:
                shapes.setdefault(name, tensor.shape)
    canonical: dict[str, str] = {}
    for anchor, other, by_config in _candidates(shapes):
        said = [says_tied(checkpoint.config) if by_config else True for checkpoint in checkpoints]
        holds = [{anchor, other} & checkpoint.tensors.keys() for checkpoint in checkpoints]
        if not all(holds):
            continue
        absent = any(len(held) < 2 for held in holds)
        allowed = all(s is not False for s in said) if absent else all(s is True for s in said)
        if allowed:
            # The first input decides how the output calls it.
            first = anchor if anchor in holds[0] else other
            canonical[other if first == anchor else anchor] = first
    return Ties(_followed(canonical))


def check_equal(name: str, path: object, other: str, digests: tuple[str, str]) -> None:
    """Raise MismatchError where a further copy of a tied tensor holds other values."""
    if digests[0] != digests[1]:
        raise MismatchError(
            "a tied tensor is stored twice, with different values",
            detail=f"{path}: {other} is not equal to {name}",
            hint="save the model again with transformers; where it has a head of its own, "
            "config.json must say tie_word_embeddings false, in every input",
        )


def _candidates(
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, str, bool]]:
    """(name, other name, whether the config decides) of tensors of one shape that may be tied."""
    shared = [name for name in shapes if ends_with(name, (SHARED,))]
    embeddings = [name for name in shapes if ends_with(name, EMBEDDINGS)]
    anchor = None
    if len(shared) == 1:
        anchor = shared[0]
        prefix = anchor.removesuffix(SHARED)
        for share in SHARES:
            if shapes.get(prefix + share) == shapes[anchor]:
                yield anchor, prefix + share, False
    elif len(embeddings) == 1:
        anchor = embeddings[0]
    for name in shapes:
        if anchor is not None and ends_with(name, HEADS) and shapes[name] == shapes[anchor]:
            yield anchor, name, True
        for bias, copy in BIASES.items():
            if ends_with(name, (copy,)):
                twin = name.removesuffix(copy) + bias
                if shapes.get(twin) == shapes[name]:
                    yield twin, name, False


def ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a name is one of these, or ends in one after a dot."""
    return name.endswith(endings) and f".{name}".endswith(tuple(f".{end}" for end in endings))


def says_tied(config: Mapping[str, Any] | None) -> bool | None:
    """`tie_word_embeddings` of a config, its own or its text model's; None where it is silent."""
    for part in (config, (config or {}).get("text_config")):
        tied = part.get("tie_word_embeddings") if isinstance(part, Mapping) else None
        if isinstance(tied, bool):
            return tied
    return None


def _followed(canonical: Mapping[str, str]) -> dict[str, str]:
    """Chains of names cut short: of several names tied to one, all go to the name that stays."""
    found = {}
    for other, name in canonical.items():
        while name in canonical:
            name = canonical[name]
        found[other] = name
    return found
