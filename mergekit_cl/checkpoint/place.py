"""What a PATH stands for, wherever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.checkpoint.filesystem import RemoteFile, RemoteFolder

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Place:
    """Weight files of one checkpoint.

    root: the folder with config and tokenizer; here, also where the weights are not. weight_map:
    {tensor: file name} of an index. side_folder: where this tool keeps what it adds. folder:
    whether PATH named a whole folder. revision: commit of a model on the hub. source: the
    filesystem of weights beyond this disk.
    """

    root: Path
    files: tuple[Path | RemoteFile, ...]
    weight_map: dict[str, str] | None
    side_folder: Path
    folder: bool = True
    revision: str | None = None
    source: RemoteFolder | None = None


def side_name(file: str) -> str:
    """The name of the folder beside a single-file checkpoint: `x.clmerge` for `x.safetensors`.

    Beside an index, `x.safetensors.index.json`, it is the same.
    """
    stem = file.removesuffix(".index.json")
    return stem.rpartition(".")[0] + ".clmerge" if "." in stem else stem + ".clmerge"
