"""What `clmerge inspect` says, taken apart; adapters to show it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.commands.checkpoints import CONFIG
from tests.commands.running import clmerge

MANIFEST = "clmerge/manifest.json"


def told(*arguments: str | Path) -> dict[str, Any]:
    """The JSON document of an inspection that must succeed."""
    result = clmerge("inspect", *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    found: dict[str, Any] = result.document
    return found


def lines(*arguments: str | Path) -> dict[str, list[str]]:
    """The text of an inspection that must succeed: {label: values}."""
    result = clmerge("inspect", *arguments)
    assert (result.code, result.err) == (0, ""), result
    found: dict[str, list[str]] = {}
    label = ""
    for line in result.out.splitlines()[1:]:
        start = re.match(r"  (\S+(?: \S+)?)  ", line)
        label = start.group(1) if start else label
        found.setdefault(label, []).append(re.sub(r"\s+", " ", line).strip().removeprefix(label))
    return {key: [value.strip() for value in values] for key, values in found.items()}


def config(folder: Path, **said: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **said}))


def adapter(folder: Path, **said: Any) -> Path:
    """A LoRA adapter as PEFT writes one: two modules of rank 4, one of rank 8, one bias."""
    folder.mkdir(parents=True)
    inside = "base_model.model.model.layers.0."
    tensors = {
        f"{inside}q_proj.lora_A.weight": torch.ones(4, 8),
        f"{inside}q_proj.lora_B.weight": torch.ones(8, 4),
        f"{inside}v_proj.lora_A.weight": torch.ones(4, 8),
        f"{inside}v_proj.lora_B.weight": torch.ones(8, 4),
        f"{inside}up_proj.lora_A.weight": torch.ones(8, 8),
        f"{inside}up_proj.lora_B.weight": torch.ones(16, 8),
        f"{inside}up_proj.bias": torch.ones(16),
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["v_proj", "q_proj", "up_proj"],
        "modules_to_save": None,
        "bias": "none",
        **said,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
