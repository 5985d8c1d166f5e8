"""How many weights a run trains and protects, from a model without its weights."""

from __future__ import annotations

from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.training.model import architecture_of
from mergekit_cl.training.skeleton import without_weights
from mergekit_cl.tuning.footprint import Counts
from mergekit_cl.tuning.model import with_adapter
from mergekit_cl.tuning.schema import Config


def count_weights(config: Config, checkpoint: Checkpoint) -> Counts:
    """Count on the meta device: the model's layers without their weights.

    Raises what `with_adapter` raises for targets that the model does not have.
    """
    import torch

    chosen = architecture_of(checkpoint)
    model = without_weights(checkpoint, chosen.class_name, torch.float32)
    whole = sum(parameter.numel() for parameter in model.parameters())
    if config.lora is None:
        return Counts(whole, whole, whole)
    adapted = with_adapter(model, config.lora, chosen.task, config.seed)
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    replaced = sum(count for name, count in trained.items() if "modules_to_save" in name)
    moved = sum(_weight(module) for module in adapted.modules() if hasattr(module, "lora_A"))
    return Counts(whole, sum(trained.values()), moved + replaced)


def _weight(module: Any) -> int:
    """Entries of the weight that an adapter's layer adds to."""
    return int(module.get_base_layer().weight.numel())
