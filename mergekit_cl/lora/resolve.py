"""From tensors of an adapter to edits of those of a base; every one is used up once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError
from mergekit_cl.lora.adapter import Adapter, Kind, Part
from mergekit_cl.lora.edits import Bias, Dora, Edit, LowRank, Replace, Rows
from mergekit_cl.lora.experts import Factors, expert_edits
from mergekit_cl.lora.forms import diagonal_blocks, form_of, misfit, stores_transposed
from mergekit_cl.lora.keymap import Found, KeyMap
from mergekit_cl.lora.scaling import scale_of


class Group(NamedTuple):
    """The factors of one module: {kind: tensor of the adapter}."""

    module: str
    depth: int
    embedding: bool
    tensors: dict[Kind, str]


def edits_of(adapter: Adapter, base: Checkpoint, keys: KeyMap, *, scale: float = 1.0) -> list[Edit]:
    """Everything an adapter does to a base, by headers alone.

    scale: all of the update is multiplied by it. Raises MismatchError for tensors that fit nothing
    in the base, or that are of other shapes, and for parts that are missing.
    """
    edits: list[Edit] = []
    for group in _groups(adapter):
        edits += _low_rank(adapter, base, keys, group, scale)
    unknown = []
    for part in adapter.parts:
        if part.kind == "rows":
            edits.append(_rows(adapter, keys, part))
        elif part.kind == "whole":
            edit = _whole(adapter, keys, part)
            if edit is None:
                unknown.append(part)
            else:
                edits.append(edit)
    if unknown:
        raise _unknown(adapter, keys, unknown)
    _check_used_once(adapter, edits)
    check_biases(adapter, base, edits)
    return edits


def _groups(adapter: Adapter) -> list[Group]:
    found: dict[tuple[str, int, bool], Group] = {}
    for part in adapter.parts:
        if part.kind in ("rows", "whole"):
            continue
        embedding = part.embedding
        key = (part.module, part.depth, embedding)
        if part.kind == "magnitude":
            key = (part.module, part.depth, (part.module, part.depth, True) in found)
        group = found.setdefault(key, Group(part.module, part.depth, key[2], {}))
        if part.kind in group.tensors:
            raise MismatchError(
                "two tensors of the adapter are the same thing",
                detail=f"{adapter.path}: {group.tensors[part.kind]} and {part.name}",
            )
        group.tensors[part.kind] = part.name
    for group in found.values():
        for kind, what in (("down", "lora_A"), ("up", "lora_B")):
            if kind not in group.tensors:
                have = ", ".join(group.tensors.values())
                raise MismatchError(
                    f"the adapter lacks a {what}",
                    detail=f"{adapter.path}: {group.module or 'the model itself'} has only {have}",
                    hint="fetch or save the adapter again",
                )
    return list(found.values())


def _low_rank(
    adapter: Adapter, base: Checkpoint, keys: KeyMap, group: Group, scale: float
) -> Iterator[Edit]:
    target = keys.find(f"{group.module}.weight") or keys.find(f"{group.module}.in_proj_weight")
    if target is None or len(target.info.shape) < 2:
        down, up = group.tensors["down"], group.tensors["up"]
        deepest = max(part.depth for part in adapter.parts if part.module == group.module)
        factors = Factors(group.module, group.depth, deepest, down, up)
        edits = expert_edits(adapter, base, keys, factors, scale)
        if not edits:
            wanted = [part for part in adapter.parts if part.module == group.module]
            raise _unknown(adapter, keys, wanted)
        yield from edits
        return
    update = _dense(adapter, base, keys, group, target, scale)
    if "magnitude" in group.tensors:
        yield _dora(adapter, group, update)
    elif adapter.config.get("use_dora"):
        raise MismatchError(
            "the adapter lacks a magnitude, though it says use_dora",
            detail=f"{adapter.path}: {group.module}",
            hint="fetch or save the adapter again",
        )
    else:
        yield update
    if "up_bias" in group.tensors:
        yield _bias(adapter, keys, group, update.scale)


def _dense(
    adapter: Adapter, base: Checkpoint, keys: KeyMap, group: Group, target: Found, scale: float
) -> LowRank:
    """The update of one weight that is a tensor of its own."""
    down, up = group.tensors["down"], group.tensors["up"]
    down_shape, up_shape = adapter.tensors[down].shape, adapter.tensors[up].shape
    blocks_down, blocks_up = diagonal_blocks(adapter.config, group.module)
    rank = down_shape[0] if down_shape else 0
    if len(down_shape) < 2 or len(up_shape) < 2 or not rank:
        raise misfit(adapter.path, group.module, target.info.shape, down_shape, up_shape)
    full_down = (rank, down_shape[1] * blocks_down, *down_shape[2:])
    full_up = (up_shape[0], up_shape[1] * blocks_up, *up_shape[2:])
    shape = target.info.shape
    form = form_of(
        shape,
        full_down,
        full_up,
        embedding=group.embedding,
        transposed=stores_transposed(base.config, adapter.config, group.module),
    )
    if form is None:
        raise misfit(adapter.path, group.module, shape, full_down, full_up)
    # PEFT adds the update of this layer twice, in training as well as in its merge.
    times = 2 if _projects_attention(keys, group, down) else 1
    return LowRank(
        target.info.name,
        down,
        up,
        times * scale * scale_of(adapter, group.module, rank),
        rank,
        form,
        shape[0],
        target.info.numel // shape[0],
        blocks_down=blocks_down,
        blocks_up=blocks_up,
        rule=target.rule if times == 1 else f"{target.rule}; twice, as PEFT does",
    )


def _projects_attention(keys: KeyMap, group: Group, name: str) -> bool:
    """Whether this is the output of torch's own MultiheadAttention, adapted with all of it."""
    owner, _, leaf = group.module.rpartition(".")
    inside = leaf == "out_proj" and ".base_layer.out_proj." in name
    return inside and keys.find(f"{owner}.in_proj_weight") is not None


def _dora(adapter: Adapter, group: Group, update: LowRank) -> Dora:
    per_row = update.form in ("linear", "convolution")
    info = adapter.tensors[group.tensors["magnitude"]]
    if info.numel != (update.rows if per_row else update.columns):
        raise MismatchError(
            "a magnitude has another length than the base's weight",
            detail=f"{adapter.path}: {info.name}: {list(info.shape)} for {update.name}",
            hint="use the base the adapter was trained on",
        )
    return Dora(update, info.name, "row" if per_row else "column")


def _bias(adapter: Adapter, keys: KeyMap, group: Group, scale: float) -> Bias:
    found = keys.find(f"{group.module}.bias")
    info = adapter.tensors[group.tensors["up_bias"]]
    if found is None:
        raise MismatchError(
            "the adapter adds to a bias that the base does not have",
            detail=f"{adapter.path}: {info.name}",
            hint="PEFT cannot merge it either: train without lora_bias",
        )
    if found.info.shape != info.shape:
        raise _other_shape(adapter, info.name, found)
    return Bias(found.info.name, info.name, scale, found.rule)


def _rows(adapter: Adapter, keys: KeyMap, part: Part) -> Rows:
    found = keys.find(f"{part.module}.weight")
    if found is None:
        raise _unknown(adapter, keys, [part])
    said = adapter.config.get("trainable_token_indices")
    if isinstance(said, dict):
        fits = [v for k, v in said.items() if f".{part.module}".endswith(f".{k}")]
        said = fits[0] if len(fits) == 1 else None
    info = adapter.tensors[part.name]
    count, *width = info.shape or (0,)
    rows = found.info.shape[0]
    if (
        not isinstance(said, list)
        or len(said) != count
        or not all(isinstance(i, int) and 0 <= i < rows for i in said)
    ):
        raise MismatchError(
            "trained tokens and their numbers do not belong together",
            detail=f"{adapter.path}: {part.name}: {count} rows for {rows}, "
            f"trainable_token_indices {said!s:.80}",
        )
    if tuple(width) != found.info.shape[1:]:
        raise _other_shape(adapter, part.name, found)
    return Rows(found.info.name, part.name, tuple(said), found.rule)


def _whole(adapter: Adapter, keys: KeyMap, part: Part) -> Replace | None:
    """A retrained tensor; None where neither the base nor the config knows it."""
    found = keys.find(part.module)
    if found is None:
        saved = adapter.config.get("modules_to_save") or ()
        owner = f".{part.module.rpartition('.')[0]}."
        known = any(f".{module}." in owner for module in saved)
        return Replace(part.module, part.name, "not in the base: added") if known else None
    shape, have = adapter.tensors[part.name].shape, found.info.shape
    if shape != have and (len(shape) != 2 or shape[1:] != have[1:]):
        raise _other_shape(adapter, part.name, found)
    return Replace(found.info.name, part.name, found.rule)


def check_biases(adapter: Adapter, base: Checkpoint, edits: list[Edit]) -> None:
    """Raise MismatchError where trained biases were not saved with the adapter."""
    trained = adapter.config.get("bias") or "none"
    if trained == "none":
        return
    replaced = {edit.name for edit in edits if isinstance(edit, Replace)}
    biases = [name for name in base.tensors if name == "bias" or name.endswith(".bias")]
    if trained == "lora_only":
        own = {e.name for e in edits if isinstance(e, (LowRank, Dora))}
        biases = [b for b in biases if b.removesuffix("bias") + "weight" in own]
    absent = [name for name in biases if name not in replaced]
    if absent:
        raise MismatchError(
            f"{len(absent)} trained biases are missing in the adapter",
            detail=f"{adapter.path}: bias is {trained}, and no {', no '.join(absent[:3])}",
            hint="PEFT up to 0.20 forgets them: save the trained model again with a newer one",
        )


def _check_used_once(adapter: Adapter, edits: list[Edit]) -> None:
    """Raise MismatchError unless every tensor of the adapter is in an edit."""
    used = Counter(name for edit in edits for name in edit.uses)
    unused = [part.name for part in adapter.parts if part.name not in used]
    if unused:
        raise MismatchError(
            f"{len(unused)} tensors of the adapter were not understood",
            detail=f"{adapter.path}: {', '.join(unused[:3])}",
        )
    replaced = Counter(edit.name for edit in edits if isinstance(edit, Replace))
    twice = [name for name, count in replaced.items() if count > 1]
    if twice:
        raise MismatchError(
            "the adapter replaces a tensor twice", detail=f"{adapter.path}: {twice[0]}"
        )


def _unknown(adapter: Adapter, keys: KeyMap, parts: list[Part]) -> MismatchError:
    lines = []
    for part in parts[:3]:
        wanted = part.module if part.kind == "whole" else f"{part.module}.weight"
        near = keys.nearest(wanted)
        lines.append(f"{part.name}: nearest are {', '.join(near)}" if near else part.name)
    count = len(parts)
    return MismatchError(
        "a tensor of the adapter fits nothing in the base"
        if count == 1
        else f"{count} tensors of the adapter fit nothing in the base",
        detail="\n  ".join([f"{adapter.path} and {keys.path}", *lines]),
        hint="use the base the adapter was trained on",
    )


def _other_shape(adapter: Adapter, name: str, found: Found) -> MismatchError:
    return MismatchError(
        "the adapter is for weights of another shape",
        detail=f"{adapter.path}: {name} {list(adapter.tensors[name].shape)}, the base has "
        f"{found.info.name} {list(found.info.shape)}",
        hint="use the base the adapter was trained on",
    )
