"""What `clmerge verify` finds, taken apart; damage for it to find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.commands.running import Result, clmerge


def kinds(result: Result) -> dict[str, list[str]]:
    """{kind: names} of the differences in a JSON document."""
    found: dict[str, list[str]] = {}
    for difference in result.document["differences"]:
        found.setdefault(difference["kind"], []).append(difference["name"])
    return found


def differences(path: Path) -> dict[str, list[str]]:
    result = clmerge("verify", path, "--json")
    assert result.code == 10, result
    assert result.document["state"] == "different"
    return kinds(result)


def save(folder: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> None:
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt", **metadata})


def flip(file: Path, name: str) -> None:
    """Change one bit of the last byte of a tensor."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    end = json.loads(content[8 : 8 + length])[name]["data_offsets"][1]
    content[8 + length + end - 1] ^= 1
    file.write_bytes(content)
