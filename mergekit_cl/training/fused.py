"""Parameters that transformers makes of several tensors of a file, or of a part of one.

From version 5 on it stacks the experts of a mixture, fuses gates, splits projections and so on
while it loads, and undoes it when it saves. What it does is a rearrangement of elements, so
whatever belongs to elements (a Fisher diagonal) can be rearranged back the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Fused:
    """parameters: those that are taken apart together. stored: {name it gives: file tensor}."""

    parameters: tuple[str, ...]
    stored: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The file tensors these parameters hold."""
        return tuple(self.stored.values())

    def take_apart(
        self, tensors: Mapping[str, Tensor], model: nn.Module
    ) -> Iterator[tuple[str, Tensor]]:
        """(file tensor, values) of values per parameter."""
        parts = revert(model, {name: tensors[name] for name in self.parameters})
        for name, stored in self.stored.items():
            yield stored, parts[name]


def find_fused(
    model: nn.Module,
    parameters: Sequence[str],
    is_stored: Callable[[str, Tensor], str | None],
) -> tuple[Fused, ...]:
    """Take parameters apart, each alone or a layer together, where the file has the parts.

    is_stored: the file tensor that a name and values are, or None. Several parameters may come
    from one tensor (a projection that is split), but no tensor spans two layers.
    """
    found: list[Fused] = []
    layers: dict[str, list[str]] = {}
    for name in parameters:
        alone = _group(model, [name], is_stored)
        if alone is not None:
            found.append(alone)
        else:
            layers.setdefault(layer_of(name), []).append(name)
    together = (_group(model, names, is_stored) for names in layers.values())
    return (*found, *(group for group in together if group is not None))


def _group(
    model: nn.Module, names: list[str], is_stored: Callable[[str, Tensor], str | None]
) -> Fused | None:
    """These parameters as a group, if the file has every tensor that they come apart into."""
    parts = revert(model, {name: model.get_parameter(name).detach() for name in names})
    stored = {}
    for part, values in parts.items():
        name = is_stored(part, values)
        if name is None:
            return None
        stored[part] = name
    return Fused(tuple(names), stored) if stored else None


def layer_of(name: str) -> str:
    """The name up to its first number: 'model.layers.3' of 'model.layers.3.mlp.up.weight'."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: number + 1])


def revert(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers would save these parameters as; nothing where it cannot say."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 nothing is fused
        return {}
    reverting: Any = revert_weight_conversion
    try:
        parts: dict[str, Tensor] = reverting(model, tensors)
    # Each conversion fails in its own way on parameters that are not whole; none is needed then.
    except Exception:
        return {}
    return parts


def stack_parts(
    model: nn.Module, parameters: Sequence[str], parts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The other way: values of parameters from the file's tensors, in the parameters' dtypes.

    model: its parameters on the meta device, where they are again afterwards.
    """
    import transformers.core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.modeling_utils import LoadStateDictConfig

    from mergekit_cl.training.quiet import quiet_transformers

    there = {name: model.get_parameter(name) for name in parameters}
    convert: Any = loading.convert_and_load_state_dict_in_model
    mapping: Any = get_model_conversion_mapping
    config: Any = LoadStateDictConfig(weight_mapping=mapping(model))
    known = getattr(model, "_weight_conversions", None)
    try:
        with quiet_transformers():
            convert(model=model, state_dict=dict(parts), load_config=config)
        return {name: model.get_parameter(name).detach() for name in parameters}
    finally:
        model._weight_conversions = known  # type: ignore[assignment]
        for name, parameter in there.items():
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner)._parameters[attribute] = parameter
