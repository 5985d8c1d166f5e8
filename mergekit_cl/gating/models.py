"""The models of a gate: checkpoints, or LoRA adapters on a base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.urls import as_typed, is_url
from mergekit_cl.digest import bytes_digest, weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError, OptionError
from mergekit_cl.lora.adapter import CONFIG, open_adapter


@dataclass(frozen=True)
class Subject:
    """One model. role: "candidate", "reference" or "anchor". checkpoint: where its weights are.
    adapter: the folder of the adapter that is added to them, or None."""

    role: str
    checkpoint: str
    adapter: Path | None

    @property
    def told(self) -> str:
        """What people call it."""
        return self.checkpoint if self.adapter is None else f"{self.checkpoint} + {self.adapter}"


def find_subject(
    role: str, place: str, *, base: str | None = None, adapter: Path | None = None
) -> Subject:
    """The model that a place names: a checkpoint, or an adapter's folder.

    base: what an adapter's folder is added to; else the path that its config names. adapter: added
    to a checkpoint. Raises OptionError for two adapters, InputError where a base is not found.
    """
    folder = Path(place)
    if is_url(as_typed(place)) or not _is_adapter(folder):
        return Subject(role, place, adapter)
    if adapter is not None:
        raise OptionError(
            f"the {role} is an adapter itself", detail=f"{place}, and --adapter {adapter}"
        )
    return Subject(role, base or _base_of(folder), folder)


def digest_of(checkpoint: Checkpoint) -> str:
    """The weights digest of a checkpoint, as its manifest would say it."""
    digests = checkpoint_digests(checkpoint)
    return weights_digest(
        (t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()
    )


def adapted_digest(weights: str, folder: Path) -> str:
    """What identifies a base of this weights digest with an adapter: both, and its config."""
    adapter = open_adapter(folder)
    with adapter.checkpoint:
        parts = [weights, digest_of(adapter.checkpoint), adapter.digest]
    return bytes_digest(json.dumps(parts).encode())


def _is_adapter(folder: Path) -> bool:
    weights = [*folder.glob("model*.safetensors*"), *folder.glob("pytorch_model*.bin*")]
    return (folder / CONFIG).is_file() and not weights


def _base_of(folder: Path) -> str:
    adapter = open_adapter(folder)
    adapter.checkpoint.close()
    named = adapter.config.get("base_model_name_or_path")
    if named and Path(str(named)).exists():
        return str(named)
    raise InputError(
        "the base of an adapter is not here",
        detail=f"{folder / CONFIG}: base_model_name_or_path is {named}",
        hint="--base MODEL (a path, or hf://ORG/NAME)",
    )
