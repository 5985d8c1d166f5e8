"""What PEFT makes of the same files: the adapters that it saves and the models that it merges."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PEFT says about tied weights and transposed layers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def save_adapter(model: nn.Module, folder: Path, *, seed: int = 0, **config: Any) -> None:
    """An adapter of random non-zero factors on a model, which is left wrapped."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with quiet():
        wrapped: Any = get_peft_model(model, LoraConfig(**config))
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                shift = torch.randn(parameter.shape, dtype=torch.float64) * 0.1
                base = parameter.data.double() if _continues(name) else 0.0
                parameter.data = (base + shift).to(parameter.dtype)
        wrapped.save_pretrained(str(folder))


def merged_by_peft(
    model: nn.Module,
    adapters: Sequence[Path],
    folder: Path,
    scales: Sequence[float] | None = None,
    *,
    wide: bool = True,
) -> dict[str, Tensor]:
    """The tensors of the file that PEFT's merged model is saved to.

    wide: whether it widens the factors of a 16-bit model, as it does by default.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    with quiet():
        wrapped: Any = PeftModel.from_pretrained(
            model, str(adapters[0]), adapter_name="a0", autocast_adapter_dtype=wide
        )
        for number, path in enumerate(adapters[1:], start=1):
            wrapped.load_adapter(str(path), adapter_name=f"a{number}")
        names = [f"a{number}" for number in range(len(adapters))]
        for name, scale in zip(names, scales or (), strict=False):
            for module in wrapped.modules():
                if isinstance(module, LoraLayer) and name in module.scaling:
                    module.set_scale(name, scale)
        merged = wrapped.merge_and_unload(adapter_names=names)
        return saved(merged, folder)


def saved(model: Any, folder: Path) -> dict[str, Tensor]:
    """The tensors that a model is saved as."""
    with quiet():
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(str(folder))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, folder / "model.safetensors", {"format": "pt"})
    return load_file(folder / "model.safetensors")


def _continues(name: str) -> bool:
    """Whether a trained tensor began as one of the base, or as a norm of it."""
    return "lora_A" not in name and "lora_B" not in name and "lora_embedding" not in name
