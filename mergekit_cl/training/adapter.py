"""A PEFT adapter added to a model's weights, in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.errors import FormatError, InputError, MismatchError
from mergekit_cl.training.names import tied_groups
from mergekit_cl.training.quiet import quiet_peft

if TYPE_CHECKING:
    from torch import Tensor

MERGE_FIRST = "merge it first: clmerge lora-merge BASE ADAPTER"
# Trained on weights that the initialisation had changed: added to the original they are wrong.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def apply_adapter(model: Any, folder: Path) -> Any:
    """The model with W replaced by W', the adapter's update added.

    model: in float32 on the CPU. Names, shapes and tied weights stay as they were. Raises
    InputError or MismatchError for an adapter that is not LoRA, does not fit, was not used whole,
    or changes a tied weight.
    """
    _check_config(folder)
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    ties = {name: group for name, group in tied_groups(model).items() if len(group) > 1}
    tied_values = {name: model.get_parameter(name).detach().clone() for name in ties}
    wrapped = _wrap(model, folder)
    _check_used(wrapped, _adapter_tensors(folder), folder)
    with quiet_peft():
        merged = wrapped.merge_and_unload()
    after = {name: parameter.shape for name, parameter in merged.named_parameters()}
    if after != before:
        changed = sorted(before.items() ^ after.items())
        raise MismatchError(
            "the adapter changes which weights the model has",
            detail=f"{folder}: {changed[0][0]}",
            hint=MERGE_FIRST,
        )
    for name, values in tied_values.items():
        if not torch.equal(merged.get_parameter(name), values):
            # Added to both uses it is not what was trained: only one of them had the update.
            raise InputError(
                "the adapter changes a weight that the model ties to another",
                detail=f"{folder}: {' and '.join(ties[name])}",
                hint=MERGE_FIRST,
            )
    return merged


def _check_config(folder: Path) -> None:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            "this is no adapter", detail=f"{path}: {error.strerror}", hint="--adapter DIR"
        ) from error
    except ValueError as error:
        raise FormatError("adapter_config.json is not JSON", detail=f"{path}: {error}") from error
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError("only LoRA adapters can be applied", detail=f"{path}: peft_type is {kind}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGED_BASE):
        raise InputError(
            "the adapter belongs to weights that its initialisation changed",
            detail=f"{path}: init_lora_weights is {start}",
            hint="convert it to plain LoRA with peft's path_initial_model_for_weight_conversion",
        )


def _wrap(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        with quiet_peft():
            return PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    # Wrong targets, shapes and files raise ValueError, RuntimeError, KeyError and others.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise MismatchError(
            "the adapter does not fit the model",
            detail=f"{folder}: {lines[-1].strip() if lines else type(error).__name__:.200}",
        ) from error


def _adapter_tensors(folder: Path) -> dict[str, Tensor]:
    from mergekit_cl.checkpoint import open_checkpoint

    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    file = next((file for file in files if file.is_file()), files[0])
    with open_checkpoint(file) as stored:
        tensors = {name: stored.tensor(name) for name in stored.tensors}
        return {**tensors, **{alias: tensors[name] for alias, name in stored.aliases.items()}}


def _check_used(wrapped: Any, stored: Mapping[str, Tensor], folder: Path) -> None:
    """Every tensor of the adapter is in the model with its values, and the model has no other."""
    from peft import get_peft_model_state_dict

    loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    # Whole embeddings that an adapter carries become the model's own parameters.
    inside = {**dict(wrapped.named_parameters(remove_duplicate=False)), **loaded}

    def used(name: str) -> bool:
        values = inside.get(name)
        return values is not None and torch.equal(values, stored[name].to(values.dtype))

    unused = sorted(name for name in stored if not used(name))
    absent = sorted(loaded.keys() - stored.keys())
    for names, what in (
        (unused, "tensors of the adapter fit nothing in the model"),
        (absent, "tensors are missing in the adapter"),
    ):
        if names:
            raise MismatchError(
                f"{len(names)} {what}",
                detail=f"{folder}: {', '.join(names[:3])}",
                hint="use the adapter with the model it was trained on",
            )
