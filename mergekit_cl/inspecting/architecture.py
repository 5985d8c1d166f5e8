"""Which model a checkpoint is, by its config and by its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mergekit_cl.inspecting.plain import mapping, plain

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_encoder_layers")
HEADS = ("lm_head.weight", "embed_out.weight")
CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.")


def architecture(
    config: Mapping[str, Any] | None, names: Iterable[str], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """Classes and model type, layers by config and by names, and where the head is.

    Values are None where neither config nor names tell.
    """
    said = mapping(config)
    inner = {**said, **mapping(said.get("text_config"))}  # of models that also see or hear
    classes = said.get("architectures")
    listed = list(names)
    return {
        "classes": [str(name) for name in classes] if isinstance(classes, list) else [],
        "model_type": plain(said.get("model_type")),
        "layers": next((inner[k] for k in LAYER_KEYS if isinstance(inner.get(k), int)), None),
        "layers_in_names": count_layers(listed),
        "head": _head(listed, aliases, _ties(inner)),
    }


def count_layers(names: Iterable[str]) -> int | None:
    """Different numbers in the place where most tensors have their first one.

    'model.layers.3.mlp.weight' counts the 3. None where no name has a number.
    """
    numbers: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for name in names:
        found = _NUMBERED.match(name)
        if found:
            stem = found.group(1)
            numbers.setdefault(stem, set()).add(found.group(2))
            counts[stem] = counts.get(stem, 0) + 1
    return len(numbers[max(counts, key=lambda stem: counts[stem])]) if counts else None


def _head(names: Iterable[str], aliases: Mapping[str, str], tied: bool | None) -> dict[str, Any]:
    """name: of the head's tensor. stored: as a tensor of its own. tied: to the embedding.

    to: the tensor it shares memory with. tied is what config.json says, or the file shows.
    """
    for alias, canonical in aliases.items():
        if _is_one_of(HEADS, alias) or _is_one_of(HEADS, canonical):
            return {"name": alias, "stored": False, "tied": True, "to": canonical}
    listed = list(names)
    heads = (name for kind in (HEADS, CLASSIFIERS) for name in listed if _is_one_of(kind, name))
    name = next(heads, None)
    return {"name": name, "stored": name is not None, "tied": tied, "to": None}


def _ties(config: Mapping[str, Any]) -> bool | None:
    """What a config says of its head; None where it is not of a language model.

    Classifiers keep `tie_word_embeddings` at true and have no head to tie.
    """
    classes = config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    tied = config.get("tie_word_embeddings")
    if named and not any(name.endswith(LANGUAGE_MODELS) for name in named):
        return None
    return tied if isinstance(tied, bool) else None


def _is_one_of(kind: tuple[str, ...], name: str) -> bool:
    return name.endswith(kind) and (name in kind or name.endswith(tuple("." + k for k in kind)))
