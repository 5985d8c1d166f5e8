"""A transformers model with a checkpoint's weights, all of them and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.training.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

SHOWN = 5


def load_model(checkpoint: Checkpoint, class_name: str, dtype: torch.dtype) -> Any:
    """Build `class_name` from config.json and fill it from the checkpoint, on the CPU.

    The weights come from the checkpoint's own reader: the same bytes whatever the file format, no
    download, no pickle beyond weights. Raises InputError for tensors the model needs and the file
    lacks, MismatchError for other shapes. Attention and experts run their plain code, whose result
    does not depend on the padding or on the kernels of a device.
    """
    import transformers

    model_class = getattr(transformers, class_name)
    weights = {
        name: checkpoint.read(name).view(info.shape) for name, info in checkpoint.tensors.items()
    }
    for alias, name in checkpoint.aliases.items():
        weights[alias] = weights[name]
    config = load_config(checkpoint)
    with quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in our words
                **plain_code(dtype),
            )
        # Models check their configuration in their own ways.
        except Exception as error:
            raise unloadable(checkpoint, error) from error
    _check(model, report, checkpoint)
    _own(model, {tensor.untyped_storage().data_ptr() for tensor in weights.values()})
    return model


def plain_code(dtype: torch.dtype) -> dict[str, Any]:
    """Options for building a model in `dtype` that runs the plain code of its layers."""
    import transformers

    options: dict[str, Any] = {"attn_implementation": "eager"}
    if hasattr(transformers.PreTrainedModel, "set_experts_implementation"):
        options["experts_implementation"] = "eager"
    # `torch_dtype` became `dtype` in 4.56.
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options["dtype" if version >= (4, 56) else "torch_dtype"] = dtype
    return options


def load_config(checkpoint: Checkpoint) -> Any:
    """The configuration of a checkpoint's model, caches off."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            checkpoint.root, local_files_only=True, trust_remote_code=False
        )
    # An unknown model type is a ValueError, a bad value whatever its check raises.
    except Exception as error:
        raise unloadable(checkpoint, error) from error
    config.use_cache = False
    return config


def unloadable(checkpoint: Checkpoint, error: Exception) -> InputError:
    """The refusal of a model that transformers itself refuses."""
    lines = str(error).strip().splitlines()
    return InputError(
        "transformers cannot build this model",
        detail=f"{checkpoint.path}: {lines[0] if lines else type(error).__name__:.200}",
        hint="code that comes with a model is never run; a newer transformers may know it",
    )


def _check(model: Any, report: dict[str, Any], checkpoint: Checkpoint) -> None:
    # Version 5 reports (name, stored shape, wanted shape), version 4 may report names alone.
    mismatched = sorted(
        entry if isinstance(entry, str) else entry[0]
        for entry in report.get("mismatched_keys") or []
    )
    if mismatched:
        raise mismatched_shapes(mismatched, model, checkpoint)
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        raise missing_weights(missing, type(model).__name__, checkpoint)


def mismatched_shapes(names: list[str], model: Any, checkpoint: Checkpoint) -> MismatchError:
    """The refusal of weights that are not those of the config."""
    name = names[0]
    stored = checkpoint.tensors[name].shape if name in checkpoint.tensors else "different"
    return MismatchError(
        f"{len(names)} tensors have another shape than config.json says",
        detail=f"{checkpoint.path}: {name} is {stored}, "
        f"not {tuple(model.state_dict()[name].shape)}",
        hint="use the config.json that was saved with these weights",
    )


def missing_weights(names: list[str], class_name: str, checkpoint: Checkpoint) -> InputError:
    """The refusal of a model that would be filled up with random numbers."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return InputError(
        f"the file lacks {len(names)} tensors that a {class_name} needs",
        detail=f"{checkpoint.path}: {shown}",
        hint="they would be random numbers; fine-tune and save the whole model first",
    )


def ignored_if_missing(model: Any, names: list[str]) -> list[str]:
    """Those of `names` that transformers would not report missing, by the model's own patterns."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


def _own(model: Any, mapped: set[int]) -> None:
    """Copy parameters that are still views of the mapped file: they may be written to later."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.untyped_storage().data_ptr() in mapped:
            tensor.data = tensor.data.clone()
