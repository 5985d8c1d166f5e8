"""The README.md of a merge: what the hub reads, how it was made, what the first input's said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.divergence.summary import Divergence
from mergekit_cl.report.card.front import front_text, licenses, merged_front, split_card
from mergekit_cl.report.card.section import section, without_section

NAME = "README.md"


def write_card(
    folder: Path,
    inputs: Sequence[Checkpoint],
    manifest: Mapping[str, Any],
    divergence: Divergence | None,
) -> None:
    """Write the card of a merge of `inputs` into `folder`, over one that was carried there."""
    text = card([(str(one.path), _card_of(one)) for one in inputs], manifest, divergence)
    path = folder / NAME
    path.unlink(missing_ok=True)  # it may be a link to the input's
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def card(
    inputs: Sequence[tuple[str, str]], manifest: Mapping[str, Any], divergence: Divergence | None
) -> str:
    """The card from the inputs' paths and the texts of their cards, empty where there is none."""
    read = [(path, *split_card(text)) for path, text in inputs]
    fronts = [(path, front) for path, front, _ in read]
    kept = without_section(read[0][2]).lstrip("\r\n")
    own = section(manifest, divergence, licenses(fronts))
    return front_text(merged_front(fronts)) + own + (f"\n{kept}" if kept else "")


def _card_of(checkpoint: Checkpoint) -> str:
    if not checkpoint.folder:
        return ""
    try:
        # Bytes that are no UTF-8 come out as they went in.
        content = (checkpoint.root / NAME).read_bytes()
    except OSError:
        return ""
    return content.decode("utf-8", "surrogateescape")
