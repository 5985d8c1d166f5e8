"""The tokenizer that lies beside a checkpoint, and what it may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.errors import InputError
from mergekit_cl.training.quiet import quiet_transformers

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
SANE_LENGTH = 10**9  # a tokenizer without a limit says 10**30


def load_tokenizer(root: Path) -> Any:
    """The tokenizer in a checkpoint's folder: from these files alone, running no code of theirs.

    Raises InputError where there is none or it cannot be loaded.
    """
    if not any((root / name).is_file() for name in FILES):
        raise InputError(
            "the checkpoint has no tokenizer",
            detail=f"{root}: none of {', '.join(FILES)}",
            hint=f"copy the tokenizer files of the model it was made from into {root}",
        )
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                root, local_files_only=True, trust_remote_code=False
            )
    # What a broken tokenizer file raises differs by kind and version, up to bare Exception.
    except Exception as error:
        first = str(error).strip().splitlines()
        raise InputError(
            "the tokenizer cannot be loaded",
            detail=f"{root}: {first[0] if first else type(error).__name__:.160}",
        ) from error


def pad_id(tokenizer: Any, config: Mapping[str, Any]) -> int:
    """The token that fills rows up: the model's own, else the tokenizer's, its end token, or 0.

    The model's comes first because some models find positions or a row's last token by it.
    """
    for value in (config.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(value, int) and 0 <= value < config.get("vocab_size", value + 1):
            return value
    return 0


def length_limit(tokenizer: Any, config: Mapping[str, Any]) -> int | None:
    """The most tokens the model can read in one row; None where nothing says so."""
    limits = [tokenizer.model_max_length]
    limits += [config.get(name) for name in ("max_position_embeddings", "n_positions")]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < SANE_LENGTH]
    return min(known, default=None)
