"""Names of the files that make weights a model: config, tokenizer, templates, code, licence."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

KINDS = (
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
NOT = ("*.index.json", "trainer_state.json", "adapter_config.json", "all_results.json")
CUSTOMARY = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "README.md",
)
"""What to ask a server for that lists no folder."""


def companions_among(names: Iterable[str]) -> list[str]:
    """Those of the names in a checkpoint's folder that a merged model needs, sorted; no weights."""
    return sorted(
        name
        for name in names
        if any(fnmatchcase(name, kind) for kind in KINDS)
        and not any(fnmatchcase(name, other) for other in NOT)
    )
