"""Which parameter of a model an optimizer means by a number.

An optimizer counts the parameters it was given, group by group. torch's habit is one group in the
model's order; the Trainer of transformers makes two, what decays and what does not, by rules that
changed between its versions. A rule counts only if every number and shape fits, and only if all
that fit agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.errors import MismatchError
from mergekit_cl.training.moments import Moment, Saved, plain_name

if TYPE_CHECKING:
    from torch import nn

_NORM = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_BIAS = re.compile("bias")
SHOWN = 3


def by_name(
    saved: Saved, found: Mapping[int | str, Moment], model: nn.Module, where: Path
) -> dict[str, Moment]:
    """{parameter of the model: its moment}; raises MismatchError where they do not fit."""
    names = {
        alias: canonical for canonical, aliases in _all_names(model).items() for alias in aliases
    }
    if all(isinstance(key, str) for key in found):
        given = {str(key): str(key) for key in found}
    else:
        given = _numbered(saved, found, model, where)
    placed = {names.get(name, name): found[key] for key, name in given.items()}
    _check(placed, model, where)
    return placed


def _numbered(
    saved: Saved, found: Mapping[int | str, Moment], model: nn.Module, where: Path
) -> dict[Any, str]:
    """{number: name} from the names in the file, else from the one order that fits."""
    groups = [list(group.get("params", ())) for group in saved.groups]
    said = [group.get("param_names") for group in saved.groups]
    if all(isinstance(names, list) for names in said):
        return {
            number: plain_name(str(name))
            for numbers, names in zip(groups, said, strict=True)
            for number, name in zip(numbers, names or (), strict=True)
            if number in found
        }
    orders = [order for order in _orders(model) if _fits(order, groups, found, model)]
    maps = [
        {
            number: name
            for numbers, names in zip(groups, order, strict=True)
            for number, name in zip(numbers, names, strict=True)
            if number in found
        }
        for order in orders
    ]
    if not maps:
        raise _unlike(model, groups, where)
    for other in maps[1:]:
        if differing := [n for n in maps[0] if maps[0][n] != other[n]]:
            number = differing[0]
            raise MismatchError(
                "the optimizer's parameters have no names, and two orders of the model's fit",
                detail=f"{where}: parameter {number} is {maps[0][number]} or {other[number]}",
                hint="save it with names: torch.optim.AdamW(model.named_parameters(), ...)",
            )
    return maps[0]


def _orders(model: nn.Module) -> Iterator[list[list[str]]]:
    """Names by group, as torch's users and the Trainer's versions give them to an optimizer."""
    names = list(dict(model.named_parameters()))
    yield [names]
    for decays in _decaying(model):
        split = [[n for n in names if n in decays], [n for n in names if n not in decays]]
        yield split
        yield [group for group in split if group]


def _decaying(model: nn.Module) -> Iterator[set[str]]:
    """Names that weight decay applies to: not in these layers, and not of these names."""
    from torch import nn
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS

    layers = tuple(ALL_LAYERNORM_LAYERS)
    for kinds, pattern in (((nn.LayerNorm,), _NORM), (layers, _NORM), (layers, _BIAS)):
        inside = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, kinds)
            for name, _ in module.named_parameters()
        }
        yield {
            name
            for name, _ in model.named_parameters()
            if name not in inside and not pattern.search(name.lower())
        }


def _fits(
    order: list[list[str]], groups: list[list[Any]], found: Mapping[Any, Moment], model: nn.Module
) -> bool:
    if [len(names) for names in order] != [len(numbers) for numbers in groups]:
        return False
    return all(
        number not in found or found[number].values.shape == model.get_parameter(name).shape
        for numbers, names in zip(groups, order, strict=True)
        for number, name in zip(numbers, names, strict=True)
    )


def _all_names(model: nn.Module) -> dict[str, list[str]]:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def _check(placed: Mapping[str, Moment], model: nn.Module, where: Path) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    strange = [name for name in placed if name not in shapes]
    wrong = [n for n in placed if n in shapes and tuple(placed[n].values.shape) != shapes[n]]
    if not strange and not wrong:
        return
    name = (strange + wrong)[0]
    have = f"the model's is {shapes[name]}" if name in shapes else "the model has none"
    raise MismatchError(
        "the optimizer trained another model",
        detail=f"{where}: {name} is {tuple(placed[name].values.shape)}, {have}",
        hint="give the optimizer that was saved with these weights",
    )


def _unlike(model: nn.Module, groups: list[list[Any]], where: Path) -> MismatchError:
    counts = " + ".join(str(len(numbers)) for numbers in groups)
    own = sum(1 for _ in model.parameters())
    return MismatchError(
        "the optimizer's parameters are not the model's, by number and shape",
        detail=f"{where}: {counts} parameters, the model has {own}",
        hint="give the one saved with these weights; where a part was frozen, save it with names: "
        "torch.optim.AdamW(model.named_parameters(), ...)",
    )
