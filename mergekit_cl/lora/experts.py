"""Updates of experts: stacked in one parameter, or one tensor each, in the adapter and in the file.

PEFT adapts a stacked parameter (experts, ., .) with factors that all experts share: down
(experts * r, in), expert by expert, and up (out, r * experts), whose columns are sorted by rank and
then by expert, or the other way round where the config says `grouped_by_expert`. Several parameters
of one module are wrapped in turn, the innermost first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.errors import InputError
from mergekit_cl.lora.adapter import Adapter
from mergekit_cl.lora.edits import Form, LowRank, Slice
from mergekit_cl.lora.forms import Shape, stores_experts_transposed
from mergekit_cl.lora.keymap import EXPERT_PARTS, KeyMap, Piecewise
from mergekit_cl.lora.scaling import scale_of

_EXPERT = re.compile(r"^(?P<module>.*)\.(?P<expert>\d+)\.(?P<part>[^.]+)$")


class Factors(NamedTuple):
    """The factors of one module: wrappers around it that the key shows, of how many there are."""

    module: str
    depth: int
    deepest: int
    down: str
    up: str


class Target(NamedTuple):
    """A stacked parameter as the file has it: one tensor, or pieces of single experts."""

    parameter: str
    experts: int
    stacked: TensorInfo | None
    pieces: list[Piecewise]
    rule: str


def expert_edits(
    adapter: Adapter, base: Checkpoint, keys: KeyMap, factors: Factors, scale: float
) -> list[LowRank]:
    """The edits of one group of factors on experts; none where the base holds no such experts."""
    down, up = adapter.tensors[factors.down].shape, adapter.tensors[factors.up].shape
    if len(down) != 2 or len(up) != 2:
        return []
    if found := _EXPERT.match(factors.module):
        return _one_of_a_stack(
            adapter,
            base,
            keys,
            factors,
            found["module"],
            int(found["expert"]),
            found["part"],
            scale,
        )
    targets = [t for t in _targets(adapter, keys, factors.module) if _fits(t, down, up)]
    target = _chosen(targets, adapter, factors)
    if target is None:
        return []
    rank = down[0] // target.experts
    scale *= scale_of(adapter, f"{factors.module}.{target.parameter}", rank)
    grouped = adapter.config.get("lora_B_layout") == "grouped_by_expert"
    return list(_edits(target, factors, base, (up[0], down[1]), rank, scale, grouped))


def _targets(adapter: Adapter, keys: KeyMap, module: str) -> Iterator[Target]:
    """What the config's target parameters mean in the file."""
    for parameter in _parameters(adapter, module):
        stacked = keys.find(f"{module}.{parameter}")
        if stacked is not None and len(stacked.info.shape) == 3:
            yield Target(parameter, stacked.info.shape[0], stacked.info, [], stacked.rule)
            continue
        experts = keys.count_experts(module, parameter)
        if experts and (pieces := keys.find_experts(module, parameter, experts)):
            yield Target(parameter, experts, None, pieces, "")


def _parameters(adapter: Adapter, module: str) -> list[str]:
    """Parameters of a module that the adapter targets, in the order in which models have them."""
    named = []
    for target in adapter.config.get("target_parameters") or ():
        owner, _, parameter = str(target).rpartition(".")
        if not owner or f".{module}".endswith(f".{owner}"):
            named.append(parameter)
    known = [name for name in EXPERT_PARTS if name in named or not named]
    return [*known, *(name for name in dict.fromkeys(named) if name not in known)]


def _fits(target: Target, down: Shape, up: Shape) -> bool:
    if down[0] % target.experts or up[1] != down[0]:
        return False
    if target.stacked is not None:
        return target.stacked.shape[1:] in ((up[0], down[1]), (down[1], up[0]))
    height = max(piece.rows[1] for piece in target.pieces)
    return height == up[0] and all(piece.info.shape[1] == down[1] for piece in target.pieces)


def _chosen(targets: list[Target], adapter: Adapter, factors: Factors) -> Target | None:
    """The parameter that the factors are of: by their shapes, else by how deep they are wrapped."""
    if len(targets) < 2:
        return targets[0] if targets else None
    names = [target.parameter for target in targets]
    if factors.deepest + 1 == len(names) and all(name in EXPERT_PARTS for name in names):
        return targets[factors.deepest - factors.depth]
    raise InputError(
        "factors fit several parameters of a module",
        detail=f"{adapter.path}: {factors.down}: {', '.join(names)}",
    )


def _edits(
    target: Target,
    factors: Factors,
    base: Checkpoint,
    product: Shape,
    rank: int,
    scale: float,
    grouped: bool,
) -> Iterator[LowRank]:
    if target.stacked is None:
        for piece in target.pieces:
            part = Slice(piece.expert, target.experts, grouped, piece.rows)
            rows, columns = piece.info.shape
            yield LowRank(
                piece.info.name,
                factors.down,
                factors.up,
                scale,
                rank,
                "linear",
                rows,
                columns,
                part=part,
                rule=piece.rule,
            )
        return
    _, rows, columns = target.stacked.shape
    crossed = (rows, columns) == product[::-1]
    if rows == columns:
        crossed = stores_experts_transposed(base.config)
    form: Form = "transposed" if crossed else "linear"
    for expert in range(target.experts):
        yield LowRank(
            target.stacked.name,
            factors.down,
            factors.up,
            scale,
            rank,
            form,
            rows,
            columns,
            begin=expert * rows * columns,
            part=Slice(expert, target.experts, grouped),
            rule=target.rule,
        )


def _one_of_a_stack(
    adapter: Adapter,
    base: Checkpoint,
    keys: KeyMap,
    factors: Factors,
    module: str,
    expert: int,
    part: str,
    scale: float,
) -> list[LowRank]:
    """An expert's own factors on a file that stores all experts in one tensor."""
    down, up = adapter.tensors[factors.down].shape, adapter.tensors[factors.up].shape
    for parameter, spellings in EXPERT_PARTS.items():
        for parts in spellings:
            stacked = keys.find(f"{module}.{parameter}") if part in parts else None
            if stacked is None or len(stacked.info.shape) != 3:
                continue
            experts, rows, columns = stacked.info.shape
            height = rows // len(parts)
            if expert >= experts or (up[0], down[1]) != (height, columns):
                return []
            if stores_experts_transposed(base.config) or up[1] != down[0]:
                return []
            begin = (expert * rows + parts.index(part) * height) * columns
            return [
                LowRank(
                    stacked.info.name,
                    factors.down,
                    factors.up,
                    scale * scale_of(adapter, factors.module, down[0]),
                    down[0],
                    "linear",
                    height,
                    columns,
                    begin=begin,
                    rule=f"{part} of expert {expert} in {parameter}; {stacked.rule}",
                )
            ]
    return []
