"""Adapters that bring embeddings of another size: whether all of the vocabulary follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError
from mergekit_cl.lora.planning import Edited
from mergekit_cl.vocabulary import is_vocabulary


def new_vocabulary(
    base: Checkpoint, edited: Mapping[str, Edited], materialised: Iterable[str]
) -> int | None:
    """Rows of the vocabulary after a merge, or None where they stay as they are.

    Raises MismatchError where some tensors of the vocabulary would have other sizes than others.
    """
    rows = {}
    for name, info in base.tensors.items():
        if info.shape and is_vocabulary(base, info):
            rows[name] = info.shape[0]
    before = dict(rows)
    for name, one in edited.items():
        if one.replaced is not None:
            adapter, edit = one.replaced
            info = adapter.tensors[edit.tensor]
            if name in rows or name in materialised:
                rows[name] = info.shape[0]
            elif name in base.tensors and info.shape != base.tensors[name].shape:
                raise MismatchError(
                    "the adapter is for weights of another shape",
                    detail=f"{adapter.path}: {edit.tensor} {list(info.shape)}, the base has "
                    f"{list(base.tensors[name].shape)}",
                    hint="use the base the adapter was trained on",
                )
    if rows == before or not rows:
        return None
    if len(set(rows.values())) > 1:
        raise MismatchError(
            "the adapter changes the size of a part of the vocabulary only",
            detail=", ".join(f"{name}: {count} rows" for name, count in rows.items()),
            hint="save the adapter with save_embedding_layers=True",
        )
    (size,) = set(rows.values())
    return None if set(before.values()) == {size} else size
