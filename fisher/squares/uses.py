"""Watching a forward pass: which operation each parameter enters, and whether rows stay apart.

Layers are recognised by the operation, not by their class: every torch function called during the
pass comes through here. One that takes a counted parameter is replaced by its counterpart (see
`operations`) where there is one and its input keeps one example per leading row. Everything else
that would let a gradient reach a counted parameter raises `NeedsSingle`: a function not known here,
a parameter used twice (but as one embedding and one head, or in different parts), and any operation
after which it is no longer known which row belongs to which example (see `owners`). Then rows are
taken one at a time, never approximately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.batch import Batch
from fisher.squares.owners import Owners, Scattered, owners_of, tensors, title
from fisher.squares.sink import Once, Part, Sink, Use
from fisher.tied import CrossTerm


class NeedsSingle(Exception):
    """Per-example gradients of this model need one backward pass per example; says why."""


@dataclass(frozen=True)
class Handle:
    """A tensor that stands for a counted parameter, up to a shift, a cast or a transposition.

    value: the same numbers, detached. transposed: with the last two axes swapped. part: the part of
    the first axis that it is. rows: the indices into the first axis by which it was gathered.
    """

    name: str
    value: Tensor
    transposed: bool = False
    part: Part = None
    rows: Tensor | None = None


class Uses(TorchFunctionMode):
    """One batch's forward pass, and as many backward passes as there are labels.

    names: id of a parameter -> its name. operations: torch function -> its counterpart, which gets
    this object and the arguments. As a context manager it watches the code inside: enter it for the
    forward pass, then call `forward_ended`, then `backward` once or more.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        batch: Batch,
        sink: Sink,
        operations: Mapping[Any, Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.size = len(batch)
        self.anchor = torch.zeros((), requires_grad=True)
        self._names = names
        self._sink = Once(sink)
        self._operations = operations
        lengths = {t.shape[1] for t in (*batch.inputs.values(), batch.labels) if t.dim() > 1}
        self._leading = frozenset({self.size, *(self.size * length for length in lengths)})
        self.owners = Owners(self.size, self._leading)
        self._handles: dict[int, tuple[Tensor, Handle]] = {}
        self._kinds: dict[str, list[tuple[str, Part]]] = {}
        self._lookups: dict[str, tuple[Tensor, int | None]] = {}
        self._in_forward = True

    def forward_ended(self) -> None:
        """From now on a use is a repeated one."""
        self._in_forward = False

    def crosses(self, like: Mapping[str, Tensor]) -> dict[str, CrossTerm]:
        """The weights used both as embedding and as head, with the rows where these meet.

        like: name -> tensor of the shape and dtype that squares are summed in.
        """
        return {
            name: CrossTerm(ids.reshape(self.size, -1), padding_idx, like[name])
            for name, (ids, padding_idx) in self._lookups.items()
            if len(self._kinds[name]) == 2
        }

    def backward(self, root: Tensor, gradient: Tensor, *, again: bool) -> None:
        """Pull `gradient` back from `root`; `again`: another pass follows, so the graph stays.

        `torch.autograd.backward` is itself a torch function, and would run the pass unwatched;
        what gradient checkpointing repeats must be watched like the first time.
        """
        self._sink.arrived.clear()
        engine: Any = torch.autograd.Variable._execution_engine
        with self:
            engine.run_backward(
                (root,), (gradient,), again, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace what is known, let through what is harmless, refuse the rest."""
        if func in _HARMLESS:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if func in _REGROUPING and _REGROUPING[func](args, kwargs):
            raise NeedsSingle(f"the model regroups rows by their content ({title(func)})")
        try:
            if not self._touches(args) and not (kwargs and self._touches(kwargs.values())):
                return self.owners.follow(func, args, kwargs)
            if func in self._operations:
                result = self._operations[func](self, *args, **kwargs)
                if result is not NotImplemented:
                    return result
        except Scattered as reason:
            raise NeedsSingle(str(reason)) from None
        result = func(*args, **kwargs)
        if any(t.requires_grad for t in tensors((result,))):
            handles = map(self.handle, tensors((*args, *kwargs.values())))
            names = sorted({handle.name for handle in handles if handle})
            raise NeedsSingle(f"{', '.join(names)} enters {title(func)}")
        return result

    def _touches(self, values: Iterable[Any]) -> bool:
        """Whether a counted parameter is among the arguments; asked of every call."""
        for value in values:
            if id(value) in self._names or id(value) in self._handles:
                return True
            if isinstance(value, (list, tuple)) and self._touches(value):
                return True
        return False

    # What operations ask and tell.

    def handle(self, value: Any) -> Handle | None:
        """The counted parameter that `value` stands for."""
        if not isinstance(value, Tensor):
            return None
        if (name := self._names.get(id(value))) is not None:
            return Handle(name, value.detach())
        return self._handles[id(value)][1] if id(value) in self._handles else None

    def derived(
        self,
        parent: Handle,
        value: Tensor,
        *,
        flipped: bool = False,
        part: Part = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`value`, which stands for `parent`, or a part or some rows of it, from now on.

        It keeps its own way back to the parameter, so that entering an unknown function shows.
        """
        handle = Handle(
            parent.name,
            value.detach(),
            parent.transposed != flipped,
            parent.part if part is None else part,
            parent.rows if rows is None else rows,
        )
        self._handles[id(value)] = (value, handle)  # alive, so that no other gets its id
        return value

    def apart(self, x: Any, features: int) -> bool:
        """Whether it is known which example each of x's rows of `features` axes belongs to."""
        if not isinstance(x, Tensor) or x.dim() <= features:
            return False
        return owners_of(x) is not None or x.shape[0] in self._leading

    def noted(self, result: Tensor, owners: Tensor | None, features: int) -> Tensor:
        """The result with the owners of its rows, where these are not in batch order."""
        if owners is None:
            return result
        return self.owners.give(result, owners.view(result.shape[: result.dim() - features]))

    def use(
        self,
        weight: Handle | None = None,
        bias: Handle | None = None,
        *,
        kind: str = "vector",
        owners: Tensor | None = None,
    ) -> Use:
        """Note that parameters are used, weight as a `kind` of thing and bias as a vector."""
        for handle, what in ((weight, kind), (bias, "vector")):
            if handle is not None and self._in_forward:
                uses = self._kinds.setdefault(handle.name, [])
                uses.append((what, handle.part))
                if len(uses) > 1 and not _separate(uses):
                    raise NeedsSingle(f"{handle.name} is used more than once")
        return Use(
            self._sink,
            self.size,
            weight=weight.name if weight else None,
            bias=bias.name if bias else None,
            transposed=kind == "transposed",
            part=weight.part if weight else None,
            bias_part=bias.part if bias else None,
            owners=owners,
        )

    def looked_up(self, weight: Handle, ids: Tensor, padding_idx: int | None) -> Use:
        """Note that `weight` is used as an embedding at ids (B, ...)."""
        use = self.use(weight, kind="lookup")
        if self._in_forward:
            self._lookups[weight.name] = (ids, padding_idx)
        return Use(use.sink, use.size, weight=weight.name, padding_idx=padding_idx)


_HARMLESS = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "is_cuda", "requires_grad", "ndim")
)
"""Questions about a tensor, which answer with no tensor."""


def _separate(uses: list[tuple[str, Part]]) -> bool:
    """Whether several uses of a parameter are an embedding and a head, or of different parts."""
    if all(isinstance(part, int) for _, part in uses):
        return len({part for _, part in uses}) == len(uses)
    return sorted(kind for kind, _ in uses) == ["lookup", "matrix"] and uses[0][1] == uses[1][1]


def _values_on_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether numbers of several rows change places, and not just indices of them."""
    x = args[0]
    if not x.is_floating_point():
        return False
    axis = kwargs.get("dim", next((a for a in args[1:] if type(a) is int), -1))
    return bool(x.dim() > 1 and axis % x.dim() == 0) or bool(x.dim() == 1 and x.requires_grad)


def _top_on_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """The same of `topk(x, k, axis)`."""
    return _values_on_rows((args[0], *args[2:]), kwargs)


def _rows_by_index(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """The same of `gather(x, axis, index)` and its like."""
    axis = kwargs.get("dim", args[1] if args[1:] and type(args[1]) is int else None)
    return bool(args[0].is_floating_point() and (axis is None or axis % max(1, args[0].dim()) == 0))


def _floats(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(args[0].is_floating_point())


_REGROUPING: Mapping[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], bool]] = {
    getattr(home, name): refused
    for home in (torch, torch.Tensor)
    for refused, names in (
        (_values_on_rows, ("sort",)),
        (_top_on_rows, ("topk",)),
        (_rows_by_index, ("gather", "take_along_dim", "take")),
        (_floats, ("masked_select", "unique")),
    )
    for name in names
}
"""What moves rows by their content without being followed, and for which arguments."""
