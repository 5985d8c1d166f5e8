"""A model without its weights, and the way to get some of them from the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fisher.layered.slots import Slots
from fisher.layered.stack import find_stack
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import InputError
from mergekit_cl.memory import give_back_freed
from mergekit_cl.training.fused import Fused, find_fused, stack_parts
from mergekit_cl.training.load import (
    load_config,
    mismatched_shapes,
    missing_weights,
    plain_code,
    unloadable,
)
from mergekit_cl.training.model import BuiltModel, architecture_of, refuse_unmatched
from mergekit_cl.training.names import (
    NameMap,
    file_name,
    file_names,
    join_names,
    match_names,
    tied_groups,
)
from mergekit_cl.training.quiet import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor


def build_skeleton(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    pad_id: int | None = None,
) -> tuple[BuiltModel, Weights]:
    """The model of a checkpoint on the meta device, its buffers in place, and where weights are.

    Every weight is read once, a layer at a time, to know by its values which tensor it is. Raises
    what `build` raises, and StackError for a model that is no single stack of layers.
    """
    chosen = architecture_of(checkpoint)
    model = without_weights(checkpoint, chosen.class_name, dtype)
    stack = find_stack(model)
    weights = Weights(model, checkpoint)
    names = _names_by_value(model, checkpoint, weights, stack.prefix)
    refuse_unmatched(model, names, checkpoint)
    if model.config.pad_token_id is None and pad_id is not None:
        model.config.pad_token_id = pad_id
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    weights.device = device
    return BuiltModel(model.eval(), chosen.task, names, dtype, None), weights


class Weights:
    """Gives parameters by name: the values of a checkpoint, cast and rearranged as for loading.

    device: where they go. Raises InputError for parameters that the file lacks, MismatchError for
    other shapes.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self.device = torch.device("cpu")
        self._model, self._checkpoint = model, checkpoint
        self._slots = Slots(model)
        prefix = getattr(model, "base_model_prefix", "")
        self._direct: dict[str, str] = {}
        others = []
        for parameter, names in tied_groups(model).items():
            found = file_names(names, prefix, checkpoint)
            shape = tuple(self._slots.empty[parameter].shape)
            fitting = [name for name in found if checkpoint.tensors[name].shape == shape]
            if fitting:
                self._direct[parameter] = fitting[0]
            else:
                others.append(parameter)

        def is_stored(name: str, values: Tensor) -> str | None:
            stored = checkpoint.tensors.get(file_name(name, prefix, checkpoint))
            fits = stored is not None and stored.shape == tuple(values.shape)
            return stored.name if fits and stored is not None else None

        self._fused: dict[str, Fused] = {
            parameter: group
            for group in find_fused(model, others, is_stored)
            for parameter in group.parameters
        }
        lacking = [parameter for parameter in others if parameter not in self._fused]
        if wrong := [name for name in lacking if name in checkpoint.tensors]:
            raise mismatched_shapes(wrong, model, checkpoint)
        if lacking:
            raise missing_weights(lacking, type(model).__name__, checkpoint)

    def __call__(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The values of these parameters, on the device."""
        give_back_freed()
        found: dict[str, Tensor] = {}
        for name in names:
            if name in found:
                continue
            if name in self._direct:
                values = self._read(self._direct[name], self._slots.empty[name].dtype)
                found[name] = values.to(self.device)
            else:
                group = self._fused[name]
                parts = {part: self._stored(part) for part in group.files}
                made = stack_parts(self._model, group.parameters, parts)
                found.update({n: values.to(self.device) for n, values in made.items()})
                self._release(group.files)
        return {name: found[name] for name in names}

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        values = self._stored(name).to(dtype)
        self._release((name,))
        return values

    def _stored(self, name: str) -> Tensor:
        return self._checkpoint.read(name).view(self._checkpoint.tensors[name].shape)

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._checkpoint.release(name, 0, self._checkpoint.tensors[name].numel)


def _names_by_value(model: Any, checkpoint: Checkpoint, weights: Weights, stack: str) -> NameMap:
    """Match a layer at a time; outside of the layers, where weights are largest, one by one."""
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for parameter, names in tied_groups(model).items():
        inside, _, rest = parameter.partition(f"{stack}.")
        layer = parameter if inside else rest.partition(".")[0]
        groups.setdefault(layer, {})[parameter] = names
    slots = Slots(model)
    parts = []
    for group in groups.values():
        with slots.filled(weights(tuple(group)), wanted=()):
            parts.append(match_names(model, checkpoint, group))
    return join_names(parts, model, checkpoint)


def without_weights(checkpoint: Checkpoint, class_name: str, dtype: torch.dtype) -> Any:
    """The model of a checkpoint with its parameters on the meta device, its buffers filled.

    Raises InputError for what transformers cannot build, and for layers that must stay in float32.
    """
    import transformers

    config = load_config(checkpoint)
    with quiet_transformers(), _parameters_on_meta():
        try:
            model: Any = getattr(transformers, class_name)._from_config(config, **plain_code(dtype))
        # Models check their configuration in their own ways.
        except Exception as error:
            raise unloadable(checkpoint, error) from error
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if dtype == torch.float16:
        kept = (*kept, *(getattr(model, "_keep_in_fp32_modules", None) or ()))
    if kept and dtype != torch.float32:
        raise InputError(
            "this model keeps some layers in float32",
            detail=f"{checkpoint.path}: {', '.join(sorted(kept))}",
            hint="--stream-layers computes all of it in one dtype: --compute-dtype float32",
        )
    for name, buffer in model.named_buffers():
        stored = file_name(name, getattr(model, "base_model_prefix", ""), checkpoint)
        if stored in checkpoint.tensors:
            buffer.copy_(checkpoint.read(stored).view(buffer.shape))
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within, modules keep their parameters on the meta device and compute their buffers."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            wanted = parameter.requires_grad
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=wanted)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
