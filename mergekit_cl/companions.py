"""Files that make weights a model: config, tokenizer, templates, code, licence."""

from __future__ import annotations

from pathlib import Path

from mergekit_cl.checkpoint.small import companions_among
from mergekit_cl.config import config_text, with_dtype


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


def _write(path: Path, content: bytes) -> None:
    """Write a new file: the old one may be a link to the input's."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
