"""Watching a forward pass: which operation each parameter enters, and whether rows stay apart.

Layers are recognised by the operation, not by their class: every torch function called during the
pass comes through here. One that takes a counted parameter is replaced by its counterpart (see
`operations`) where there is one and its input keeps one example per leading row. Everything else
that would let a gradient reach a counted parameter raises `NeedsSingle`: a function not known here,
a parameter used twice (but as one embedding and one head), and any operation that regroups rows by
their content, as routers to experts do. Then rows are taken one at a time, never approximately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.batch import Batch
from fisher.squares.sink import Once, Sink, Use
from fisher.tied import CrossTerm


class NeedsSingle(Exception):
    """Per-example gradients of this model need one backward pass per example; says why."""


@dataclass(frozen=True)
class Handle:
    """A tensor that stands for a counted parameter, up to a shift, a cast or a transposition.

    value: the same numbers, detached.
    """

    name: str
    value: Tensor
    transposed: bool = False


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
        self._leading = {self.size, *(self.size * length for length in lengths)}
        self._handles: dict[int, tuple[Tensor, Handle]] = {}
        self._kinds: dict[str, list[str]] = {}
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
        kwargs = kwargs or {}
        if func in _REGROUPING and _REGROUPING[func](args, kwargs):
            raise NeedsSingle(f"the model regroups rows by their content ({_title(func)})")
        if not self._touches((*args, *kwargs.values())):
            return func(*args, **kwargs)
        if func in self._operations:
            result = self._operations[func](self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if any(t.requires_grad for t in _tensors((result,))):
            handles = map(self.handle, _tensors((*args, *kwargs.values())))
            names = sorted({handle.name for handle in handles if handle})
            raise NeedsSingle(f"{', '.join(names)} enters {_title(func)}")
        return result

    def _touches(self, values: Iterable[Any]) -> bool:
        """Whether a counted parameter is among the arguments; asked of every call."""
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._names or id(value) in self._handles:
                    return True
            elif isinstance(value, (list, tuple)) and self._touches(value):
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

    def derived(self, parent: Handle, value: Tensor, *, flipped: bool = False) -> Tensor:
        """`value`, which stands for `parent` from now on.

        It keeps its own way back to the parameter, so that entering an unknown function shows.
        """
        handle = Handle(parent.name, value.detach(), parent.transposed != flipped)
        self._handles[id(value)] = (value, handle)  # alive, so that no other gets its id
        return value

    def apart(self, x: Any, features: int) -> bool:
        """Whether x has one example, or one position of one, per leading row."""
        return isinstance(x, Tensor) and x.dim() > features and x.shape[0] in self._leading

    def use(
        self, weight: Handle | None = None, bias: Handle | None = None, *, kind: str = "vector"
    ) -> Use:
        """Note that parameters are used, weight as a `kind` of thing and bias as a vector."""
        for handle, what in ((weight, kind), (bias, "vector")):
            if handle is not None and self._in_forward:
                kinds = self._kinds.setdefault(handle.name, [])
                kinds.append(what)
                if len(kinds) > 1 and sorted(kinds) != ["lookup", "matrix"]:
                    raise NeedsSingle(f"{handle.name} is used more than once")
        return Use(
            self._sink,
            self.size,
            weight=weight.name if weight else None,
            bias=bias.name if bias else None,
            transposed=kind == "transposed",
        )

    def looked_up(self, weight: Handle, ids: Tensor, padding_idx: int | None) -> Use:
        """Note that `weight` is used as an embedding at ids (B, ...)."""
        use = self.use(weight, kind="lookup")
        if self._in_forward:
            self._lookups[weight.name] = (ids, padding_idx)
        return Use(use.sink, use.size, weight=weight.name, padding_idx=padding_idx)


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return True


def _one_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return len(args) + len(kwargs) == 1


def _by_mask(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return any(index.dtype == torch.bool for index in _tensors(args[1:]))


_REGROUPING: Mapping[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], bool]] = {
    **{
        getattr(home, name): _always
        for home in (torch, torch.Tensor)
        for name in ("nonzero", "masked_select", "unique", "topk", "sort", "argsort")
    },
    torch.where: _one_argument,
    torch.Tensor.__getitem__: _by_mask,
}
"""What rows are picked or permuted with by their content, and for which arguments."""


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, in lists and tuples at any depth."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _title(func: Any) -> str:
    return str(getattr(func, "__qualname__", None) or getattr(func, "__name__", func))
