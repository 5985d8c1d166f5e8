"""What of a model with LoRA adapters is a weight of its base, and how each weight moves.

Only the attributes of PEFT's layers are read; the library itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_cl.continual.lowrank import Factors, LowRank
from mergekit_cl.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPING = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)\.")


@dataclass(frozen=True)
class Adapted:
    """parameters: {name in the base model: what is used for it}, frozen ones too, tied ones once.

    lowrank: the weights that move by factors; their own parameters are frozen.
    """

    parameters: Mapping[str, Tensor]
    lowrank: tuple[LowRank, ...]

    @property
    def names(self) -> frozenset[str]:
        """Of the weights that move by factors."""
        return frozenset(weight.name for weight in self.lowrank)


def adapted(model: nn.Module) -> Adapted:
    """The weights of a model under the names they have without adapters.

    Any module will do; without adapters these are its parameters. Raises OptionError, with the
    layer's name, for what trains a weight in another way than plain LoRA does: DoRA and other
    variants, biases of LoRA's own, other adapters and layers, merged adapters, quantised weights.
    """
    whole: Any = model
    root: nn.Module = whole.get_base_model() if hasattr(whole, "get_base_model") else model
    layers = {name: layer for name, layer in root.named_modules() if _is_trained_adapter(layer)}
    factors = {name: tuple(_factors(name, layer)) for name, layer in layers.items()}
    used = {id(tensor) for found in factors.values() for one in found for tensor in (one.a, one.b)}
    _refuse_others(layers, used)
    parameters = {
        _WRAPPING.sub(".", f".{name}")[1:]: parameter
        for name, parameter in root.named_parameters()
        if id(parameter) not in used and ".original_module." not in f".{name}"
    }
    names = {id(parameter): name for name, parameter in parameters.items()}
    lowrank = []
    for name, layer in layers.items():
        base = _base_weight(layer)
        lowrank.append(LowRank(names[id(base)], base, factors[name], _is_transposed(layer)))
    return Adapted(parameters, tuple(lowrank))


def _is_trained_adapter(layer: nn.Module) -> bool:
    """Whether the module wraps another and trains something that is not that one's."""
    return hasattr(layer, "base_layer") and any(
        parameter.requires_grad and not name.startswith("base_layer.")
        for name, parameter in layer.named_parameters()
    )


def _factors(name: str, layer: Any) -> Iterator[Factors]:
    reason = _not_plain(layer)
    if reason is not None:
        raise OptionError(
            "EWC holds back weights that plain LoRA trains, not this layer",
            detail=f"{name} is {type(layer).__module__}.{type(layer).__qualname__}{reason}",
            hint="use plain LoRA on linear layers and embeddings, or no EWC",
        )
    for adapter in layer.active_adapters:
        scale = layer.scaling.get(adapter)
        if adapter in layer.lora_A:
            yield Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, scale)
        elif adapter in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
            yield Factors(a, b, scale)


def _not_plain(layer: Any) -> str | None:
    """Why a layer is more than W + s B A, empty for another kind of layer; None if it is not."""
    if not hasattr(layer, "lora_A") or type(layer).__name__ not in ("Linear", "Embedding"):
        return ""
    if not _base_weight(layer).is_floating_point():
        return f" over {_base_weight(layer).dtype}"
    variants = {**getattr(layer, "lora_variant", {}), **dict(layer.lora_magnitude_vector)}
    if variants:
        return f" with {', '.join(sorted(type(one).__name__ for one in variants.values()))}"
    if any(layer.lora_bias.values()):
        return " with lora_bias"
    if layer.merged or layer.disable_adapters:
        return ", merged or disabled"
    return None


def _refuse_others(layers: Mapping[str, nn.Module], used: set[int]) -> None:
    for name, layer in layers.items():
        for inner, parameter in layer.named_parameters():
            trained = parameter.requires_grad and not inner.startswith("base_layer.")
            if trained and id(parameter) not in used:
                raise OptionError(
                    "an adapter is trained that is not active, so EWC cannot see what it changes",
                    detail=f"{name}.{inner}",
                    hint="activate it (set_adapter) or freeze it",
                )


def _base_weight(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight
    return weight


def _is_transposed(layer: Any) -> bool:
    """Whether the base stores its weight as (inputs, outputs): Conv1D and embeddings do."""
    return bool(layer.fan_in_fan_out) or type(layer).__name__ == "Embedding"
