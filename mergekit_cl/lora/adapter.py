"""A PEFT adapter as its files say it: config, tensors, and what each tensor is to which module."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from mergekit_cl.checkpoint.hub import HUB, fetch
from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path, shown
from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import FormatError, InputError

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.")
PREFIX = "base_model.model."

Kind = Literal["down", "up", "magnitude", "up_bias", "rows", "whole"]

_LOW_RANK = re.compile(
    r"^(?P<module>.*?)\.?(?P<what>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?$"
)
_ROWS = re.compile(
    r"^(?P<module>.*)\.token_adapter\.trainable_tokens_delta(?:\.(?P<adapter>[^.]+))?$"
)
_SAVED = re.compile(r"^(?P<module>.*)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)$")


class Part(NamedTuple):
    """What one tensor of an adapter is.

    name: in the adapter's file. module: path in the base model, of a whole tensor its own. depth:
    wrappers around the module that are stripped from the path, where one module has several.
    embedding: whether it is a factor of an embedding. adapter: its name in the key, if any.
    """

    name: str
    module: str
    kind: Kind
    depth: int = 0
    embedding: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class Adapter:
    """path: as given. config: adapter_config.json. digest: of that file's bytes."""

    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    digest: str
    parts: tuple[Part, ...]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What its file holds, under every name."""
        stored = self.checkpoint.tensors
        return {**stored, **{one: stored[name] for one, name in self.checkpoint.aliases.items()}}


def open_adapter(path: str | Path) -> Adapter:
    """Open the adapter in a folder, or of a repository `hf://org/name[@revision]`, from headers.

    Raises InputError where it is missing or no adapter, FormatError where its files are broken.
    """
    folder = _folder(as_typed(path))
    text = _read(folder)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{CONFIG} is not JSON", detail=f"{folder / CONFIG}: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{CONFIG} is not a JSON object", detail=str(folder / CONFIG))
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(
            "the folder holds the config of an adapter, but no weights",
            detail=f"{folder}: none of {', '.join(FILES)}",
            hint="fetch or save the adapter again",
        )
    checkpoint = open_checkpoint(weights)
    parts = tuple(parse_key(name) for name in [*checkpoint.tensors, *checkpoint.aliases])
    return Adapter(folder, checkpoint, config, bytes_digest(text), parts)


def _folder(text: str) -> Path:
    """Where its files are on this disk."""
    if text.startswith(HUB):
        return fetch(text)[0]
    here = local_path(text) if is_url(text) else Path(text)
    if here is None:
        raise InputError(
            "an adapter is read from this disk or from the hub",
            detail=shown(text),
            hint="copy its folder here: it is small beside its base",
        )
    return here


def _read(folder: Path) -> bytes:
    try:
        return (folder / CONFIG).read_bytes()
    except (OSError, ValueError) as error:
        near = nearest_path(folder)
        hint = f"name the folder that PEFT saved, with {CONFIG} and {FILES[0]}"
        raise InputError(
            "this is no adapter",
            detail=f"{folder!s:.300}: no {CONFIG} there",
            hint=hint if near is None else str(near),
        ) from error


def parse_key(name: str) -> Part:
    """What a tensor of an adapter is, by its name.

    Anything that is no factor of an update is a whole tensor of the base model, retrained.
    """
    key = name.removeprefix("module.") if name.startswith("module.base_model.") else name
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    key = key.removeprefix(PREFIX) if key.startswith(PREFIX) else key.removeprefix("base_model.")
    if found := _LOW_RANK.match(key):
        what, leaf = found["what"], found["leaf"]
        module, depth = _unwrapped(found["module"])
        kind: Kind = "magnitude" if what.endswith("vector") else "down"
        if what[-1] == "B":
            kind = "up_bias" if leaf == "bias" else "up"
        return Part(name, module, kind, depth, "embedding" in what, found["adapter"])
    if found := _ROWS.match(key):
        return Part(name, _unwrapped(found["module"])[0], "rows", adapter=found["adapter"])
    if found := _SAVED.match(key):
        whole = f"{_unwrapped(found['module'])[0]}.{found['leaf']}"
        return Part(name, whole, "whole", adapter=found["adapter"])
    return Part(name, _unwrapped(key)[0], "whole")


def adapter_names(parts: Iterable[Part]) -> set[str]:
    """The adapters that keys name."""
    return {part.adapter for part in parts if part.adapter is not None}


def _unwrapped(path: str) -> tuple[str, int]:
    """A module's path without the wrappers PEFT puts around layers, and how many ended it."""
    steps = path.split(".")
    depth = 0
    while steps and steps[-1] == "base_layer":
        steps.pop()
        depth += 1
    inner = ("base_layer", "original_module", "token_adapter")
    return ".".join(step for step in steps if step not in inner), depth
