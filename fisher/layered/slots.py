"""Weights put into a model that holds none, and taken out again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class Slots:
    """The places of a model's parameters, tied ones under their first name.

    empty: name -> the parameter that was there at first, on the meta device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.empty: dict[str, nn.Parameter] = {}
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        first: dict[int, str] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, parameter in model.named_parameters(remove_duplicate=False):
            canonical = first.setdefault(id(parameter), name)
            self.empty.setdefault(canonical, parameter)
            owner, _, attribute = name.rpartition(".")
            self._places.setdefault(canonical, []).append((modules[owner], attribute))

    def uses(self, name: str) -> int:
        """How many places a parameter has."""
        return len(self._places[name])

    @contextmanager
    def filled(
        self, values: Mapping[str, Tensor], wanted: Collection[str]
    ) -> Iterator[dict[str, nn.Parameter]]:
        """Within, these parameters hold `values`; those `wanted` take gradients.

        Nothing holds on to the values afterwards, the given dictionary included.
        """
        made = {name: nn.Parameter(v, requires_grad=name in wanted) for name, v in values.items()}
        try:
            for name, parameter in made.items():
                self._put(name, parameter)
            yield made
        finally:
            for name in values:
                self._put(name, self.empty[name])
            made.clear()

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for module, attribute in self._places[name]:
            module._parameters[attribute] = parameter
