"""What each output tensor is made of, decided from headers; every refusal that needs no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from mergekit_cl.carry import Carry, carry_layout
from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.dtypes import promote
from mergekit_cl.compatible import check_mergeable, check_same_tensors
from mergekit_cl.errors import OptionError
from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.merge.formula import COMPILED_DTYPES, Formula
from mergekit_cl.merge.kernel import Kernel, KernelAt
from mergekit_cl.ties import Ties, find_ties
from mergekit_cl.vocabulary import Resized, Vocab, check_one_size, describe, find_resized

Action = Literal["merged", "copied"]


class Operand(NamedTuple):
    """One tensor to read; `info` may have fewer rows than the checkpoint's."""

    checkpoint: Checkpoint
    info: TensorInfo

    @property
    def is_whole(self) -> bool:
        """Whether all of the tensor is read."""
        return self.info.shape == self.checkpoint.tensors[self.info.name].shape


class Step(NamedTuple):
    """How one output tensor comes about.

    operands: everything read for it. kernel: None copies the first operand. parents: operands that
    divergence is measured against; fishers: for each parent the operand with its Fisher, or None;
    residuals: likewise the operand with what rounding took from it. twins: (operand, the one it
    must equal), of tied tensors stored twice. base: the operand that is the base, for the report.
    must_agree: whether a copy is refused where the operands differ. compute: dtype of the
    arithmetic. merged_numel: elements beyond these, which the other operands lack, are copied from
    the first. formula: what the kernel computes, where a compiled one gives the same bits.
    kernel_of: the kernel by the first element of a block, where what it does depends on that.
    compiled_of: one in float64 that gives the same bits sooner, and overwrites its operands.
    kernel_bytes: memory that kernels hold besides scratch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    action: Action
    operands: tuple[Operand, ...]
    kernel: Kernel | None
    parents: tuple[int, ...]
    fishers: tuple[int | None, ...]
    residuals: tuple[int | None, ...] = ()
    twins: tuple[tuple[int, int], ...] = ()
    base: int | None = None
    must_agree: bool = False
    compute: str = "F32"
    merged_numel: int | None = None
    formula: Formula | None = None
    kernel_of: KernelAt | None = None
    compiled_of: KernelAt | None = None
    kernel_bytes: int = 0

    @property
    def sources(self) -> tuple[tuple[Checkpoint, str], ...]:
        """Of every operand its checkpoint and its dtype: what steps of one kind have in common."""
        return tuple([(operand.checkpoint, operand.info.dtype) for operand in self.operands])

    def kernel_at(self, start: int) -> Kernel | None:
        """The kernel for operands that begin at this element of the tensor."""
        return self.kernel if self.kernel_of is None else self.kernel_of(start)


@dataclass(frozen=True)
class Plan:
    """Steps in reading order and the files they fill.

    carry: the file of residuals, if kept. resized: vocabulary tensors of which inputs have more or
    fewer rows. config: what config.json must say that the first input's does not.
    tokenizer: the folder it is from, if not the first input's. beside_bytes: what is written beside
    the weights at most, where that may be much.
    """

    steps: dict[str, Step]
    layout: Layout
    notes: tuple[str, ...]
    carry: Layout | None = None
    resized: Resized = field(default_factory=Resized)
    config: Mapping[str, object] = field(default_factory=dict)
    tokenizer: Path | None = None
    beside_bytes: int = 0

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of all operands."""
        return sum(o.info.nbytes for step in self.steps.values() for o in step.operands)

    @property
    def bytes_written(self) -> int:
        """Bytes of all weight files and residuals."""
        return self.layout.nbytes + (self.carry.nbytes if self.carry else 0)


@dataclass(frozen=True)
class Selection:
    """Which tensors are merged: those an `include` matches (all, if none) and no `exclude` does."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        wanted = not self.include or any(fnmatchcase(name, glob) for glob in self.include)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.exclude)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise OptionError for a pattern that matches no tensor: a typo would go unseen."""
        for glob in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, glob) for name in checkpoint.tensors):
                near = get_close_matches(glob, checkpoint.tensors, n=1, cutoff=0.3)
                raise OptionError(
                    "a pattern matches no tensor",
                    detail=f"{glob!r}: {checkpoint.path} has {len(checkpoint.tensors)} tensors",
                    hint=f"a name there is {near[0]}"
                    if near
                    else f"clmerge inspect {checkpoint.path}",
                )


class Ingredients(NamedTuple):
    """What a method needs for one tensor.

    more: operands besides the inputs. fishers: for each input the operand with its Fisher, or None.
    float32_for: output dtypes for which float32 arithmetic is close enough to the exact result.
    base: the operand that is the base, if one is read.
    formula: what the kernel computes, if there is a compiled one for that.
    """

    kernel: Kernel
    more: tuple[Operand, ...]
    fishers: tuple[int | None, ...]
    float32_for: frozenset[str] = frozenset({"F32"})
    base: int | None = None
    formula: Formula | None = None


Recipe = Callable[[str, Sequence[Operand]], Ingredients]
"""(tensor name, inputs) -> what to make its output from."""

Fishers = Callable[[str, int], tuple[tuple[Operand, ...], tuple[int | None, ...]]]
"""(tensor name, operands before) -> operands with its Fisher, and which of them each input's is."""


def plan_merge(
    checkpoints: Sequence[Checkpoint],
    recipe: Recipe,
    *,
    selection: Selection,
    dtype: str | None,
    shard_size: int,
    notes: Sequence[str] = (),
    newest_integers: bool = False,
    carries: Sequence[Carry | None] = (),
    keep_residuals: int | None = None,
    vocab: Vocab = "error",
    fishers: Fishers | None = None,
) -> Plan:
    """Plan a merge of whole checkpoints of the same tensors.

    dtype: of every merged tensor; None keeps equal dtypes and promotes different ones. Tensors not
    selected are copied from the first input; integers must be equal (checked while they are
    read) and are copied, counters from the last input; `newest_integers` takes all of them from
    there. carries: residuals of each input. keep_residuals: plan a carry file that says the output
    has had so many updates. vocab: what vocabularies of different sizes come to: refused, the rows
    all inputs have ("common"), or as many as the first has ("base"). fishers: of float tensors that
    are copied, to measure what that does to the other inputs. Raises MismatchError listing
    every name or shape that differs; InputError for types that cannot be merged.
    """
    selection.check(checkpoints[0])
    check_mergeable(checkpoints)  # first: quantised files also differ in names and types
    resized = find_resized(checkpoints)
    ties = find_ties(checkpoints)
    check_same_tensors(checkpoints, resized, vocab, ties)
    if resized.rows:
        check_one_size(checkpoints, resized)
        if carries or keep_residuals is not None:
            raise OptionError(
                "what rounding takes cannot be kept for vocabularies of different sizes",
                detail=f"--carry with --vocab {vocab}",
                hint="leave --carry out; ema-merge keeps it unless told --no-carry",
            )
    steps = {}
    copied = []
    parents = tuple(range(len(checkpoints)))
    for name, first in checkpoints[0].tensors.items():
        if name in ties.canonical:
            continue
        inputs = tuple(
            [Operand(c, _cut(name, ties.held(c, name) or first, resized)) for c in checkpoints]
        )
        if not first.is_float:
            newest = newest_integers or is_counter(name)
            steps[name] = _copy(name, inputs[-1 if newest else 0], inputs, None, agree=not newest)
        elif name not in selection:
            more, places = fishers(name, len(inputs)) if fishers else ((), (None,) * len(inputs))
            more = tuple(Operand(o.checkpoint, _cut(name, o.info, resized)) for o in more)
            step = _copy(name, inputs[0], inputs, dtype)
            step = step._replace(operands=step.operands + more, parents=parents, fishers=places)
            steps[name] = _with_twins(step, ties, resized)
            copied.append(name)
        else:
            made = recipe(name, inputs)
            more = tuple(Operand(o.checkpoint, _cut(name, o.info, resized)) for o in made.more)
            operands = inputs + more
            out = dtype or promote({operand.info.dtype for operand in inputs})
            added, places = _residual_operands(name, len(operands), carries)
            dtypes = {operand.info.dtype for operand in operands}
            compute = _compute_dtype(dtypes, out, made.float32_for)
            step = Step(
                name,
                out,
                inputs[0].info.shape,
                "merged",
                operands + added,
                made.kernel if not added else _shown(made.kernel, len(operands)),
                parents,
                made.fishers,
                places,
                base=made.base,
                compute=compute,
                formula=made.formula if dtypes | {out} <= COMPILED_DTYPES else None,
            )
            steps[name] = _with_twins(step, ties, resized)
        if vocab == "base" and inputs[0].info.shape != first.shape:
            steps[name] = _with_tail(steps[name], Operand(checkpoints[0], first))
    shapes = [(step.name, step.dtype, step.shape) for step in steps.values()]
    layout = lay_out(
        shapes,
        stem="model",
        shard_size=shard_size,
        metadata={"format": "pt"},
    )
    told = [*notes, *ties.describe(checkpoints)]
    if copied:
        told.append(f"{len(copied)} tensors are copied from {checkpoints[0].path}, as selected")
    if resized.rows:
        told.append(describe(checkpoints, resized, vocab))
    carry: Layout | None = None
    if keep_residuals is not None:
        merged = [shape for shape in shapes if steps[shape[0]].action == "merged"]
        carry = carry_layout(merged, keep_residuals)
        carry = carry if carry.shards[0].header.tensors else None
    return Plan(steps, layout, tuple(told), carry, resized)


def is_counter(name: str) -> bool:
    """Whether an integer buffer counts steps, so that the newest value is the right one."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _copy(
    name: str,
    source: Operand,
    inputs: tuple[Operand, ...],
    dtype: str | None,
    *,
    agree: bool = False,
) -> Step:
    rest = tuple(operand for operand in inputs if operand is not source)
    kept = source.info.dtype if dtype is None or not source.info.is_float else dtype
    # The others are read too: their digests go into the record, and integers are compared.
    operands = (source, *rest)
    return Step(name, kept, source.info.shape, "copied", operands, None, (), (), must_agree=agree)


def _cut(name: str, info: TensorInfo, resized: Resized) -> TensorInfo:
    """The part of a tensor, merged under `name`, that all inputs have."""
    if name not in resized.rows:
        return info
    return info._replace(shape=resized.shape(name, info))


def _with_twins(step: Step, ties: Ties, resized: Resized) -> Step:
    """The step with further copies of its inputs' tensors to read: they must be equal to them."""
    if not ties.canonical:
        return step
    added: list[Operand] = []
    twins = []
    for k in step.parents:
        source = step.operands[k].checkpoint
        for info in ties.twins(source, step.name):
            twins.append((len(step.operands) + len(added), k))
            added.append(Operand(source, _cut(step.name, info, resized)))
    if not added:
        return step
    kernel = step.kernel and _shown(step.kernel, len(step.operands))
    operands = step.operands + tuple(added)
    return step._replace(operands=operands, twins=tuple(twins), kernel=kernel)


def _shown(kernel: Kernel, count: int) -> Kernel:
    """A kernel that sees only the first operands, not those that are read for something else."""
    return lambda operands, scratch: kernel(operands[:count], scratch)


def _with_tail(step: Step, whole: Operand) -> Step:
    """The step with the rest of its first operand copied behind what it makes."""
    merged = step.operands[0].info.numel
    operands = (whole, *step.operands[1:])
    return step._replace(shape=whole.info.shape, operands=operands, merged_numel=merged)


def _residual_operands(
    name: str, place: int, carries: Sequence[Carry | None]
) -> tuple[tuple[Operand, ...], tuple[int | None, ...]]:
    """Residual operands of one tensor, and where each input's stands among all operands."""
    more: list[Operand] = []
    places: list[int | None] = []
    for carry in carries:
        if carry is None or name not in carry.checkpoint.tensors:
            places.append(None)
        else:
            places.append(place + len(more))
            more.append(Operand(carry.checkpoint, carry.checkpoint.tensors[name]))
    return tuple(more), tuple(places)


def _compute_dtype(operands: set[str], out: str, float32_for: frozenset[str]) -> str:
    """The arithmetic of a tensor: float64 where an operand is, or float32 would show in `out`.

    operands: their dtypes.
    """
    if "F64" in operands:
        return "F64"
    return "F32" if out == "F64" or out in float32_for else "F64"


def float32_for(operands: int) -> frozenset[str]:
    """Where float32 changes at most 1 in 10^4 rounded results of a mean of so many operands.

    Measured on unrelated inputs: two into bfloat16 change 2 in 10^5, eight change 2 in 10^4; two
    into float16, whose steps are 8 times finer, already 1 in 10^4.
    """
    return frozenset({"F32", "BF16"}) if operands <= 2 else frozenset({"F32"})
