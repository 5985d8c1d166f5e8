"""The loss of a merged model and its parents on the same rows, measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.comparing.measured import Data, Measured, MeasuredModel
from mergekit_cl.device import choose_device
from mergekit_cl.report.progress import Start
from mergekit_cl.training.choose import choose
from mergekit_cl.training.data import read_rows
from mergekit_cl.training.encode import Encoded
from mergekit_cl.training.loss import Mean, RowLosses, accuracy, mean_loss, mean_rise
from mergekit_cl.training.loss import measure_losses as measure_one
from mergekit_cl.training.rows import data_digest

CHARACTERS_PER_TOKEN = 4  # of English: how long a passage of plain text is cut


def measure(
    merged: Checkpoint, parents: Sequence[Checkpoint], data: Data, device: str, progress: Start
) -> Measured:
    """Run each model over the rows, one after the other.

    device: `auto` is a GPU where there is one. Raises DataError for rows that cannot be used,
    MismatchError for models that read the rows as different tokens.
    """
    rows = choose(
        read_rows(
            data.paths,
            text_field=data.text_field,
            label_field=data.label_field,
            passage=CHARACTERS_PER_TOKEN * data.max_length,
        ),
        data.samples,
    ).rows
    chosen = choose_device(device)
    if device == "auto" and torch.cuda.is_available():
        chosen = torch.device("cuda")
    advance = progress("measure", len(rows) * (1 + len(parents)), "rows")
    encoded: Encoded | None = None
    losses: list[RowLosses] = []
    for checkpoint in (merged, *parents):
        found, encoded = measure_one(
            checkpoint,
            rows,
            max_length=data.max_length,
            device=chosen,
            like=encoded,
            advance=advance,
        )
        losses.append(found)
    assert encoded is not None
    return Measured(
        len(encoded.rows),
        sum(losses[0].tokens),
        encoded.truncated,
        data_digest(row.id for row in encoded.rows),
        _described(merged, losses[0], None),
        tuple(
            _described(parent, found, mean_rise(losses[0], found))
            for parent, found in zip(parents, losses[1:], strict=True)
        ),
    )


def _described(checkpoint: Checkpoint, losses: RowLosses, rise: Mean | None) -> MeasuredModel:
    return MeasuredModel(str(checkpoint.path), mean_loss(losses), accuracy(losses), rise)
