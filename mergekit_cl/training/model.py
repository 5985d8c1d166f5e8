"""From a checkpoint to a model whose Fisher can be computed, under the names of its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import InputError
from mergekit_cl.training.architecture import Architecture, Task, architecture, known_classes
from mergekit_cl.training.load import ignored_if_missing, load_model, missing_weights
from mergekit_cl.training.names import NameMap, map_names

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BuiltModel:
    """A model in eval mode, every weight of it from the checkpoint.

    map: its names against the file's. adapter: what was applied to the weights, or None; the names
    and shapes stay those of the checkpoint.
    """

    model: Any
    kind: Task
    map: NameMap
    dtype: torch.dtype
    adapter: Path | None

    @property
    def names(self) -> Mapping[str, str]:
        """{parameter: file tensor} of those that are one whole tensor of the file."""
        return self.map.direct

    @property
    def missing(self) -> Mapping[str, str]:
        """{file tensor: reason} of those that are no parameter."""
        return self.map.missing

    @property
    def tied(self) -> Mapping[str, str]:
        """{other name: the file tensor that stands for both}."""
        return self.map.tied

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def files_of(self, parameter: str) -> tuple[str, ...]:
        """The file tensors a parameter has a part in."""
        return self.map.files_of(parameter)

    def by_file(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(file tensor, values) of values per parameter, in the file's shapes."""
        return self.map.by_file(tensors, self.model)


def build(
    checkpoint: Checkpoint,
    *,
    task: Task | None = None,
    adapter: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    pad_id: int | None = None,
) -> BuiltModel:
    """Build the model of a checkpoint and match its parameters to the file's tensors.

    task: instead of what config.json says. adapter: a PEFT folder whose update is added to the
    weights, in float32. dtype: what the model computes in. pad_id: the token that rows are padded
    with, for classifiers that find a row's end by it and whose config names none.
    Raises InputError where config.json is missing, the kind of model is not supported, or the
    file lacks a weight.
    """
    chosen = architecture_of(checkpoint, task)
    model = load_model(checkpoint, chosen.class_name, dtype if adapter is None else torch.float32)
    names = map_names(model, checkpoint)
    refuse_unmatched(model, names, checkpoint)
    if adapter is not None:
        from mergekit_cl.training.adapter import apply_adapter

        model = apply_adapter(model, adapter)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # not buffers: some must stay in float32
    if model.config.pad_token_id is None and pad_id is not None:
        model.config.pad_token_id = pad_id
    model = model.to(device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return BuiltModel(model, chosen.task, names, dtype, adapter)


def architecture_of(checkpoint: Checkpoint, task: Task | None = None) -> Architecture:
    """The class to build; raises InputError where there is none or no gradient could exist."""
    if checkpoint.config is None:
        raise InputError(
            "the checkpoint has no config.json, so its model cannot be built",
            detail=f"{checkpoint.path}: looked in {checkpoint.root}",
            hint=f"copy the model's config.json (and tokenizer) into {checkpoint.root}",
        )
    _refuse_packed(checkpoint)
    return architecture(checkpoint.config, known_classes(), task, str(checkpoint.path))


def _refuse_packed(checkpoint: Checkpoint) -> None:
    packed = [t.name for t in checkpoint.tensors.values() if t.dtype.startswith(("F4", "F6", "F8"))]
    if packed:
        raise InputError(
            "the weights are quantised and have no gradient",
            detail=f"{checkpoint.path}: {packed[0]} is {checkpoint.tensors[packed[0]].dtype}",
            hint="use the model in bfloat16, float16 or float32",
        )


def refuse_unmatched(model: Any, names: NameMap, checkpoint: Checkpoint) -> None:
    """A parameter that is nothing of the file may be random; one of a known cause may not."""
    unmatched = list(names.unmatched)
    explained = any(reason == "unsupported" for reason in names.missing.values())
    random = ignored_if_missing(model, unmatched) if explained else unmatched
    if random:
        raise missing_weights(random, type(model).__name__, checkpoint)
