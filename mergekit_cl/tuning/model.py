"""The model that is trained: a whole checkpoint in float32, or an adapter on a frozen one."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import OptionError
from mergekit_cl.training.model import BuiltModel, build
from mergekit_cl.training.quiet import quiet_peft
from mergekit_cl.training.tokenizer import load_tokenizer, pad_id
from mergekit_cl.tuning.order import generator_seed
from mergekit_cl.tuning.schema import Config, Lora

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER = "default"  # what peft calls an adapter that nobody named


@dataclass(frozen=True)
class Tuned:
    """A model with what is trained of it.

    built: the model as its file has it; with an adapter, its modules are those of `module`.
    module: what computes: the model, or peft's around it.
    """

    built: BuiltModel
    module: Any
    tokenizer: Any
    config: dict[str, Any]
    adapted: bool

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are trained, by their names in `module`, tied ones once."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Those that a step may change and a file would hold, such as batch statistics."""
        kept = self.module.state_dict(keep_vars=True).keys()
        for name, buffer in self.module.named_buffers():
            if name in kept:
                yield name, buffer

    def trained(self) -> dict[str, nn.Parameter]:
        """`named_parameters` as a dict."""
        return dict(self.named_parameters())

    def evolving(self) -> dict[str, Tensor]:
        """All tensors that training changes: what a state on the disk holds of the model."""
        found: dict[str, Tensor] = {name: p.detach() for name, p in self.named_parameters()}
        return found | dict(self.named_buffers())


def build_base(checkpoint: Checkpoint) -> BuiltModel:
    """The model of a checkpoint, in float32 on the CPU; raises what `training.model.build` does."""
    tokenizer = load_tokenizer(checkpoint.root)
    return build(checkpoint, pad_id=pad_id(tokenizer, checkpoint.config or {}))


def build_tuned(config: Config, checkpoint: Checkpoint, built: BuiltModel) -> Tuned:
    """A built model ready to be trained: as it is, or frozen with an adapter put into it.

    Raises OptionError for targets of an adapter that the model does not have.
    """
    module = built.model
    if config.lora is not None:
        module = with_adapter(module, config.lora, built.kind, config.seed)
    tokenizer = load_tokenizer(checkpoint.root)
    return Tuned(built, module, tokenizer, dict(checkpoint.config or {}), config.lora is not None)


def file_name(parameter: str) -> str:
    """A parameter's name in the model without the adapter: the inverse of what peft adds."""
    name = parameter.removeprefix("base_model.model.")
    for inserted in ("base_layer.", f"modules_to_save.{ADAPTER}."):
        name = name.replace(inserted, "")
    return name


def with_adapter(model: Any, settings: Lora, kind: str, seed: int) -> Any:
    """The model with a fresh adapter, drawn from the seed; the rest is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=copy(settings.targets),  # peft writes into what it is given
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.rslora,
        task_type=TaskType.CAUSAL_LM if kind == "causal-lm" else TaskType.SEQ_CLS,
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(generator_seed(seed, "adapter"))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise OptionError(
                "the adapter's targets are no layers of the model",
                detail=f"lora.targets {settings.targets}: {str(error).splitlines()[0]:.160}",
                hint='targets = "all-linear", or names such as q_proj',
            ) from error
