"""What each output tensor is made of, decided from headers; every refusal that needs no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.dtypes import INTEGERS, MERGEABLE, promote
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.merge.kernel import Kernel

Action = Literal["merged", "copied"]


@dataclass(frozen=True)
class Operand:
    """One tensor to read."""

    checkpoint: Checkpoint
    info: TensorInfo


@dataclass(frozen=True)
class Step:
    """How one output tensor comes about.

    operands: everything read for it. kernel: None copies the first operand. parents: operands that
    divergence is measured against; fishers: for each parent the operand with its Fisher, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    action: Action
    operands: tuple[Operand, ...]
    kernel: Kernel | None
    parents: tuple[int, ...]
    fishers: tuple[int | None, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in reading order and the files they fill."""

    steps: dict[str, Step]
    layout: Layout
    notes: tuple[str, ...]

    @property
    def bytes_read(self) -> int:
        """Bytes of all operands."""
        return sum(o.info.nbytes for step in self.steps.values() for o in step.operands)

    @property
    def bytes_written(self) -> int:
        """Bytes of all weight files."""
        return self.layout.nbytes


@dataclass(frozen=True)
class Selection:
    """Which tensors are merged: those an `include` matches (all, if none) and no `exclude` does."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        wanted = not self.include or any(fnmatchcase(name, glob) for glob in self.include)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.exclude)


Recipe = Callable[
    [str, Sequence[Operand]], tuple[Kernel, tuple[Operand, ...], tuple[int | None, ...]]
]
"""(tensor name, inputs) -> (kernel, further operands, Fisher operand of each input or None)."""


def plan_merge(
    checkpoints: Sequence[Checkpoint],
    recipe: Recipe,
    *,
    selection: Selection,
    dtype: str | None,
    shard_size: int,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan a merge of whole checkpoints of the same tensors.

    dtype: of every merged tensor; None keeps equal dtypes and promotes different ones. Tensors not
    selected are copied from the first input; integers must be equal (checked while they are
    read) and are copied, counters from the last input. Raises MismatchError listing every name or
    shape that differs; InputError for types that cannot be merged.
    """
    check_mergeable(checkpoints)  # first: quantised files also differ in names and types
    check_same_tensors(checkpoints)
    steps = {}
    copied = []
    for name, first in checkpoints[0].tensors.items():
        inputs = tuple(Operand(c, c.tensors[name]) for c in checkpoints)
        if not first.is_float:
            source = inputs[-1] if is_counter(name) else inputs[0]
            steps[name] = _copy(name, source, inputs, None)
        elif name not in selection:
            steps[name] = _copy(name, inputs[0], inputs, dtype)
            copied.append(name)
        else:
            kernel, more, fishers = recipe(name, inputs)
            out = dtype or promote({operand.info.dtype for operand in inputs})
            parents = tuple(range(len(inputs)))
            steps[name] = Step(
                name, out, first.shape, "merged", inputs + more, kernel, parents, fishers
            )
    layout = lay_out(
        [(step.name, step.dtype, step.shape) for step in steps.values()],
        stem="model",
        shard_size=shard_size,
        metadata={"format": "pt"},
    )
    told = list(notes)
    if copied:
        told.append(f"{len(copied)} tensors are copied from {checkpoints[0].path}, as selected")
    return Plan(steps, layout, tuple(told))


def is_counter(name: str) -> bool:
    """Whether an integer buffer counts steps, so that the newest value is the right one."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def check_same_tensors(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise MismatchError listing every tensor that some input lacks or has in another shape."""
    first = checkpoints[0]
    found: list[str] = []
    for other in checkpoints[1:]:
        for name, tensor in first.tensors.items():
            twin = other.tensors.get(name)
            if twin is None:
                found.append(f"{name}: not in {other.path}")
            elif twin.shape != tensor.shape:
                found.append(
                    f"{name}: {list(tensor.shape)} in {first.path}, "
                    f"{list(twin.shape)} in {other.path}"
                )
            elif twin.is_float != tensor.is_float or (
                not tensor.is_float and twin.dtype != tensor.dtype
            ):
                found.append(
                    f"{name}: {tensor.dtype} in {first.path}, {twin.dtype} in {other.path}"
                )
        found.extend(
            f"{name}: not in {first.path}" for name in other.tensors if name not in first.tensors
        )
    if found:
        raise MismatchError(
            f"the inputs differ in {len(found)} tensors",
            detail="\n  ".join(found),
            hint="merge checkpoints of one architecture",
        )


def check_mergeable(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise InputError for fp8, packed or quantised weights, naming the first."""
    for checkpoint in checkpoints:
        if not checkpoint.tensors:
            raise InputError("the checkpoint holds no tensors", detail=str(checkpoint.path))
        quantisation = (checkpoint.config or {}).get("quantization_config")
        if quantisation is not None:
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
            raise _quantised(f"{checkpoint.path}: config.json says {method or 'quantised'}")
        for tensor in checkpoint.tensors.values():
            if tensor.dtype not in MERGEABLE | INTEGERS:
                raise _quantised(f"{checkpoint.path}: {tensor.name} is {tensor.dtype}")


def _quantised(detail: str) -> InputError:
    return InputError(
        "quantised weights cannot be merged: their numbers mean nothing without their scales",
        detail=detail,
        hint="merge the unquantised model and quantise the result",
    )


def _copy(name: str, source: Operand, inputs: tuple[Operand, ...], dtype: str | None) -> Step:
    rest = tuple(operand for operand in inputs if operand is not source)
    kept = source.info.dtype if dtype is None or not source.info.is_float else dtype
    # The others are read too: their digests go into the record, and integers are compared.
    return Step(name, kept, source.info.shape, "copied", (source, *rest), None, (), ())
