"""Which example each row of a regrouped tensor belongs to.

Most tensors of a forward pass hold one example, or one position of one, per leading row in batch
order; they need no note. Where a model picks rows by their content, as routers to experts do, the
result carries the example of each of its rows along, through everything that moves rows or treats
them one by one, until they are back in batch order. What does neither is not guessed at: it raises
`Scattered`.

Owners are an integer tensor of the shape of what they describe, with stride 0 along axes on which
they do not change: they move as the data does, by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NOTE = "_fisher_example_of_row"


class Scattered(Exception):
    """Rows were regrouped and then lost from sight; the text says where."""


def owners_of(tensor: Any) -> Tensor | None:
    """The example of each entry, of the tensor's shape; None in batch order."""
    return getattr(tensor, _NOTE, None)


class Owners:
    """The notes of one pass over `size` examples.

    leading: lengths of a first axis that is known to be in batch order.
    """

    def __init__(self, size: int, leading: frozenset[int]) -> None:
        self._size = size
        self._leading = leading
        self._any = False

    def rows(self, x: Tensor, features: int) -> Tensor | None:
        """(rows,) the owners of x's rows, its last `features` axes being one row's."""
        owners = owners_of(x)
        if owners is None:
            return None
        rows = owners.reshape(-1, *owners.shape[owners.dim() - features :])
        first = _first(rows)
        if any(owners.stride()[owners.dim() - features :]):
            whole = first.view(-1, *[1] * features).expand(rows.shape)
            if not torch.equal(whole, rows):
                raise Scattered("one row holds several examples")
        return first

    def each(self, x: Tensor) -> Tensor:
        """(rows,) the owners of the rows of x (rows, features), also in batch order."""
        rows = self.rows(x, 1)
        return _first(self._in_order(x)) if rows is None else rows

    def give(self, result: Tensor, rows: Tensor) -> Tensor:
        """Note `rows`, the owners of result's first axes."""
        rest = result.dim() - rows.dim()
        return self._note(result, rows.reshape(*rows.shape, *[1] * rest).expand(result.shape))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call `func` and note whose rows its result holds."""
        if func in _PICKS:
            return _PICKS[func](self, func, args, kwargs)
        result = func(*args, **kwargs)
        if not self._any:
            return result
        noted = [t for t in tensors((*args, *kwargs.values())) if owners_of(t) is not None]
        if noted and any(t.is_floating_point() for t in tensors((result,))):
            self._carry(func, args, kwargs, result, noted)
        return result

    def _note(self, result: Tensor, owners: Tensor) -> Tensor:
        if result.shape[0] in self._leading and torch.equal(owners, self._in_order(result)):
            if owners_of(result) is not None:
                delattr(result, _NOTE)
            return result
        self._any = True
        setattr(result, _NOTE, owners)
        return result

    def _in_order(self, x: Tensor) -> Tensor:
        """The owners of a tensor in batch order."""
        rows = torch.arange(self._size, device=x.device, dtype=torch.int16)
        rows = rows.repeat_interleave(x.shape[0] // self._size)
        return rows.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)

    def _known(self, x: Any) -> Tensor | None:
        """The owners of x, noted or by batch order; None for a constant."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
            return None
        if isinstance(x, nn.Parameter):  # of those that do not count
            return None
        if (owners := owners_of(x)) is not None:
            return owners
        if x.shape[0] in self._leading:
            return self._in_order(x)
        if x.requires_grad:
            if x.shape[0] % self._size == 0:
                return self._in_order(x)
            raise Scattered("rows are picked out of a tensor that is not in batch order")
        return None

    # Functions that pick rows, or put them back.

    def _index(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """`x[index]`, `x.index_select(axis, index)`, `x.repeat_interleave(n, dim=axis)`."""
        result = func(*args, **kwargs)
        x = args[0]
        if not self._picks_rows(func, args, kwargs) and owners_of(x) is None:
            return result
        if (owners := self._known(x)) is None:
            return result
        if func is torch.Tensor.__getitem__ and 0 < _axes(args[1]) < x.dim():
            owners = owners.narrow(-1, 0, 1) if owners.stride(-1) == 0 else owners
        moved = func(owners, *args[1:], **kwargs)
        return self._note(result, moved.expand(result.shape)) if result.dim() else result

    def _picks_rows(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(isinstance(i, (Tensor, list)) for i in index)
        return True

    def _put(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """`y.index_add_(0, index, x)` and its like: x's rows must belong where they go."""
        named = (kwargs[key] for key in ("dim", "index", "source", "src") if key in kwargs)
        y, axis, index, x = (*args, *named)[:4]
        target, source = self._known(y), owners_of(x)
        if axis not in (0, -y.dim()):
            if source is not None:
                raise Scattered("regrouped rows are put elsewhere than on the first axis")
            return func(*args, **kwargs)
        if source is None and x.shape[0] in self._leading and x.is_floating_point():
            source = self._in_order(x)
        if target is None or source is None:
            if x.requires_grad or y.requires_grad:
                raise Scattered("rows of unknown examples are put back")
            return func(*args, **kwargs)
        if not torch.equal(_first(target)[_first(index)], _first(source)):
            raise Scattered("rows of one example are put into another's")
        result = func(*args, **kwargs)
        return self._note(result, target)

    def _assign(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """`y[index] = x`."""
        y, index, x = args
        source = owners_of(x)
        if source is not None:
            target = self._known(y)
            if target is None:
                target = self._in_order(y) if len(y) % self._size == 0 else None
            if target is None or not torch.equal(target[index], source.expand(target[index].shape)):
                raise Scattered("rows of one example are put into another's")
        return func(*args, **kwargs)

    # Functions that keep rows as they are.

    def _carry(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        noted: list[Tensor],
    ) -> None:
        first = self._given(noted[0])
        if func in _MOVES:
            if len(noted) == 1 and noted[0] is args[0]:
                by = torch.Tensor.reshape if func in _VIEWS else func
                moved = by(first, *args[1:], **kwargs)
                for part, owner in zip(tensors((result,)), tensors((moved,)), strict=True):
                    self._note(part, owner)
                return
            if func in (torch.cat, torch.concat) and len(noted) == len(args[0]):
                self._note(result, torch.cat(list(map(self._given, noted)), *args[1:], **kwargs))
                return
        elif func in _ELEMENTWISE:
            self._note(result, self._agreed(args, kwargs, result))
            return
        elif func in _REDUCTIONS and (args[1:] or kwargs.get("dim") is not None):
            axis = args[1] if args[1:] else kwargs["dim"]
            keep: dict[str, Any] = {
                "keepdim": bool(kwargs.get("keepdim", args[2] if args[2:] else False))
            }
            low, high = torch.amin(first, axis, **keep), torch.amax(first, axis, **keep)
            if torch.equal(low, high):
                self._note(result, low)
                return
        elif func in _ROWWISE and len(noted) == 1 and noted[0] is args[0]:
            owners_rows = self.rows(noted[0], 1)
            if owners_rows is not None and result.shape[:-1] == noted[0].shape[:-1]:
                self.give(result, owners_rows.view(result.shape[:-1]))
                return
        elif func in _SAME_SHAPE and len(noted) == 1 and noted[0] is args[0]:
            self.rows(noted[0], 1)
            self._note(result, first)
            return
        raise Scattered(f"regrouped rows enter {title(func)}")

    def _given(self, x: Tensor) -> Tensor:
        owners = owners_of(x)
        assert owners is not None
        return owners

    def _agreed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> Tensor:
        """The owners common to all operands of an elementwise function."""
        agreed: Tensor | None = None
        for operand in tensors((*args, *kwargs.values())):
            owners = owners_of(operand)
            if owners is None:
                grows = operand.requires_grad and operand.dim() > 0
                if grows and operand.dim() == result.dim() and operand.shape[0] != 1:
                    raise Scattered("regrouped rows meet rows in another order")
                continue
            whole = owners.expand(result.shape)
            if agreed is not None and not torch.equal(agreed, whole):
                raise Scattered("rows of different examples meet")
            agreed = whole
        assert agreed is not None
        return agreed


def _first(owners: Tensor) -> Tensor:
    """(rows,) the first entry of each row."""
    while owners.dim() > 1:
        owners = owners.select(-1, 0)
    return owners


def _axes(index: Any) -> int:
    """How many leading axes an index uses up; 0 if that is not plain to see."""
    used = 0
    for part in index if isinstance(index, tuple) else (index,):
        if part is None or part is Ellipsis or isinstance(part, list):
            return 0
        used += part.dim() if isinstance(part, Tensor) and part.dtype == torch.bool else 1
    return used


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, in lists and tuples at any depth."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def title(func: Any) -> str:
    """A torch function's name for people."""
    return str(getattr(func, "__qualname__", None) or getattr(func, "__name__", func))


def _both(names: str) -> frozenset[Any]:
    """The functions of these names in torch and on tensors."""
    found = (getattr(home, n, None) for home in (torch, torch.Tensor) for n in names.split())
    return frozenset(func for func in found if func is not None)


_PICKS: Mapping[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: Owners._index,
    **dict.fromkeys(_both("index_select repeat_interleave"), Owners._index),
    **dict.fromkeys(_both("index_add index_add_ scatter_add scatter_add_"), Owners._put),
    torch.Tensor.__setitem__: Owners._assign,
}
_VIEWS = _both("view reshape")
_MOVES = _both(
    "view reshape flatten unflatten transpose permute unsqueeze squeeze split chunk narrow expand "
    "expand_as repeat cat concat contiguous t swapaxes movedim unbind select"
)
_ELEMENTWISE = _both(
    "add sub mul div true_divide neg abs exp expm1 log log1p sqrt rsqrt square pow reciprocal erf "
    "add_ sub_ mul_ div_ sigmoid sigmoid_ tanh relu clamp clamp_ clamp_min clamp_max minimum "
    "maximum sin cos masked_fill masked_fill_ where to type type_as float half bfloat16 double "
    "clone detach __radd__ __rsub__ __rmul__ __rpow__"
) | {
    *(F.silu, F.gelu, F.relu, F.relu6, F.sigmoid, F.tanh, F.softplus, F.dropout, F.hardtanh),
    *(F.leaky_relu, F.elu, F.mish, F.logsigmoid),
}
_REDUCTIONS = _both("sum mean amax amin")
_ROWWISE = _both("matmul __matmul__") | {F.linear}
_SAME_SHAPE = frozenset({F.layer_norm, F.rms_norm, F.softmax, torch.softmax, torch.Tensor.softmax})
