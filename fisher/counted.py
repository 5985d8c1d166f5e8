"""Which tensors of a model get a Fisher diagonal, under which name, and why the others do not.

Names that share memory (an embedding and its head) are one parameter: it is counted once, under the
name that comes first in the model. Missing means not in the graph; a parameter that is counted but
never reached has a measured Fisher of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fisher.errors import EstimatorError


@dataclass(frozen=True)
class Counted:
    """The parameters that count, and what became of every other name of the model's state.

    parameters: canonical name -> the parameter objects behind it, nearly always one.
    tied: other name -> canonical name. missing: name -> `buffer`, `frozen`, `excluded` or
    `unsupported` (no gradient exists for its dtype). names: id of a parameter object -> canonical
    name; `sharded.following` adds objects that stand in for a parameter for a while.
    """

    parameters: dict[str, tuple[nn.Parameter, ...]]
    tied: dict[str, str]
    missing: dict[str, str]
    names: dict[int, str]


def counted(
    model: nn.Module,
    *,
    include: Callable[[str], bool] | None = None,
    frozen: Collection[str] = (),
) -> Counted:
    """Sort a model's names into counted, tied and missing.

    include: says of a name whether it counts; a tied parameter counts if any of its names does.
    frozen: names that the caller trains nothing of; `requires_grad` is no sign of that, since
        loaders and inference code clear it freely.
    """
    groups: dict[object, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(_memory(parameter), []).append((name, parameter))
    known = {name for group in groups.values() for name, _ in group}
    if unknown := sorted(set(frozen) - known):
        raise EstimatorError(f"no such parameter to call frozen: {', '.join(unknown)}")

    parameters: dict[str, tuple[nn.Parameter, ...]] = {}
    tied: dict[str, str] = {}
    missing = dict.fromkeys(_buffers(model), "buffer")
    for group in groups.values():
        names = [name for name, _ in group]
        tied.update(dict.fromkeys(names[1:], names[0]))
        if not group[0][1].dtype.is_floating_point:
            missing[names[0]] = "unsupported"
        elif set(names) & set(frozen):
            missing[names[0]] = "frozen"
        elif include is not None and not any(map(include, names)):
            missing[names[0]] = "excluded"
        else:
            parameters[names[0]] = tuple({id(p): p for _, p in group}.values())
    ids = {id(p): name for name, group in parameters.items() for p in group}
    return Counted(parameters, tied, missing, ids)


def _memory(tensor: Tensor) -> object:
    """Equal for two tensors that are the same numbers in the same place."""
    tensor = getattr(tensor, "to_local", lambda: tensor)()  # of a DTensor, the part that is here
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _buffers(model: nn.Module) -> Iterator[str]:
    """Names of the buffers that a checkpoint holds."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name
