"""Files that make weights a model: config, tokenizer, templates, code, licence."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.small import companions_among
from mergekit_cl.config import config_text, with_dtype, with_values, with_vocabulary

OF_A_VOCABULARY = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "generation_config.json",
)
"""Files that name tokens by their numbers."""


def companions(root: Path) -> list[Path]:
    """Files of a checkpoint folder that a merged model needs, sorted; no weights."""
    return [root / name for name in companions_among(p.name for p in root.iterdir() if p.is_file())]


def copy_companions(root: Path, target: Path, dtype: str | None) -> None:
    """Copy them into `target`, byte for byte; config.json says `dtype` where that changed."""
    for path in companions(root):
        _write(target / path.name, path.read_bytes())
    text = config_text(root)
    if text is not None and dtype is not None:
        _write(target / "config.json", with_dtype(text, dtype).encode())


def change_companions(target: Path, values: Mapping[str, object], tokenizer: Path | None) -> None:
    """Set values in its config.json, and take the tokenizer of a folder that has one."""
    text = config_text(target)
    if text is not None and values:
        _write(target / "config.json", with_values(text, values).encode())
    if tokenizer is not None:
        _take_tokenizer(target, tokenizer)


def _take_tokenizer(target: Path, folder: Path) -> None:
    brought = [path for path in companions(folder) if _is_tokenizer(path.name)]
    if any(path.name.startswith("tokenizer") for path in brought):
        for path in companions(target):
            if _is_tokenizer(path.name):
                path.unlink()
        for path in brought:
            _write(target / path.name, path.read_bytes())


def cut_vocabulary(target: Path, smallest: Checkpoint, rows: int) -> None:
    """Make companions in `target` those of a vocabulary of `rows`: that of the input `smallest`.

    Where that input is a lone file no tokenizer is left: another's has tokens without rows.
    """
    for path in companions(target):
        if _is_of_vocabulary(path.name):
            path.unlink()
    if smallest.folder:
        for path in companions(smallest.root):
            if _is_of_vocabulary(path.name):
                _write(target / path.name, path.read_bytes())
    text = config_text(target)
    if text is not None:
        edited = with_vocabulary(text, rows, smallest.config or {})
        _write(target / "config.json", edited.encode())


def _is_tokenizer(name: str) -> bool:
    return _is_of_vocabulary(name) and name != "generation_config.json"


def _is_of_vocabulary(name: str) -> bool:
    return any(fnmatchcase(name, kind) for kind in OF_A_VOCABULARY)


def _write(path: Path, content: bytes) -> None:
    """Write a new file: the old one may be a link to the input's."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
