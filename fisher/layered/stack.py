"""Where a model keeps its layers: found by structure, not by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fisher.errors import StackError


@dataclass(frozen=True)
class Stack:
    """A model's one list of layers. prefix: its name in the model."""

    prefix: str
    layers: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def index_of(self, parameter: str) -> int | None:
        """The layer that a parameter belongs to; None outside of the stack."""
        head, _, rest = parameter.partition(f"{self.prefix}.")
        number = rest.partition(".")[0]
        return int(number) if not head and number.isdigit() else None


def find_stack(model: nn.Module) -> Stack:
    """The one outermost list of modules with parameters.

    Raises StackError where there is none or more than one, and where layers share weights with
    each other or with the rest of the model.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if (
            isinstance(module, nn.ModuleList)
            and not inside
            and next(module.parameters(), None) is not None
        ):
            found[name] = module
    if not found:
        raise StackError(f"{type(model).__name__} has no stack of layers")
    if len(found) > 1:
        raise StackError(
            f"{type(model).__name__} has {len(found)} stacks of layers: {', '.join(found)}"
        )
    ((prefix, home),) = found.items()
    stack = Stack(prefix, tuple(home))
    owners: dict[int, tuple[str, int | None]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first, place = owners.setdefault(id(parameter), (name, stack.index_of(name)))
        if place != stack.index_of(name):
            raise StackError(f"layers share weights: {first} and {name}")
    return stack
