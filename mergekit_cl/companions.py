"""Files that make weights a model: config, tokenizer, templates, code, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

from mergekit_cl.config import config_text, with_dtype

_KINDS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.py",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)
_NOT = ("*.index.json", "trainer_state.json", "adapter_config.json", "all_results.json")


def companions(root: Path) -> list[Path]:
    """Files of a checkpoint folder that a merged model needs, sorted; no weights."""
    found = {
        path
        for kind in _KINDS
        for path in root.glob(kind)
        if path.is_file() and not any(path.match(other) for other in _NOT)
    }
    return sorted(found)


def carry(root: Path, target: Path, dtype: str | None) -> None:
    """Copy them into `target`, byte for byte; config.json says `dtype` where that changed."""
    for path in companions(root):
        shutil.copyfile(path, target / path.name)
    text = config_text(root)
    if text is not None and dtype is not None:
        (target / "config.json").write_text(with_dtype(text, dtype))
