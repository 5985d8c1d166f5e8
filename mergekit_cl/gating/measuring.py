"""The losses of several models on the same suites, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.device import choose_device
from mergekit_cl.errors import InputError
from mergekit_cl.gating.losses import Measured, Model
from mergekit_cl.gating.models import Subject, adapted_digest, digest_of
from mergekit_cl.lora.adapter import open_adapter
from mergekit_cl.report.progress import Start
from mergekit_cl.training.encode import Encoded
from mergekit_cl.training.loss import RowLosses, measure_suites
from mergekit_cl.training.model import architecture_of
from mergekit_cl.training.rows import Row, data_digest
from mergekit_cl.training.tokenizer import load_tokenizer

Key = tuple[str, Path | None]


@dataclass(frozen=True)
class Place:
    """Where models run. device: `auto` is a GPU where there is one. threads: of torch."""

    device: str = "auto"
    threads: int | None = None


def check_models(subjects: Sequence[Subject]) -> None:
    """Raise InputError, before any is loaded, where a model could not be."""
    for subject in subjects:
        with open_checkpoint(subject.checkpoint) as checkpoint:
            architecture_of(checkpoint)
            load_tokenizer(checkpoint.root)
        if subject.adapter is not None:
            open_adapter(subject.adapter).checkpoint.close()


def measure(
    subjects: Sequence[Subject],
    suites: Mapping[str, Sequence[Row]],
    *,
    max_length: int,
    place: Place,
    progress: Start,
) -> Measured:
    """Run each model over every suite; the same model in two roles runs once.

    Raises MismatchError for models that read the rows as different tokens, InputError where a
    model changes while it is measured, and what `measure_suites` raises.
    """
    import torch

    if place.threads is not None:
        torch.set_num_threads(place.threads)
    device = choose_device(place.device)
    if place.device == "auto" and torch.cuda.is_available():
        device = torch.device("cuda")
    keys = {one.role: (one.checkpoint, one.adapter) for one in subjects}
    different = {keys[one.role]: one for one in subjects}
    rows = sum(len(suite) for suite in suites.values())
    advance = progress("measure", rows * len(different), "rows")
    encoded: dict[str, Encoded] | None = None
    losses: dict[Key, dict[str, RowLosses]] = {}
    digests: dict[Key, str] = {}
    for key, subject in different.items():
        with open_checkpoint(subject.checkpoint) as checkpoint:
            losses[key], encoded = measure_suites(
                checkpoint,
                suites,
                adapter=subject.adapter,
                max_length=max_length,
                device=device,
                like=encoded,
                advance=advance,
            )
            if checkpoint.stamps() != _stamps_now(subject):
                raise InputError(
                    "a model changed while it was measured",
                    detail=str(checkpoint.path),
                    hint="measure again when nothing writes to it",
                )
            if (subject.checkpoint, None) not in digests:
                digests[subject.checkpoint, None] = digest_of(checkpoint)
        if subject.adapter is not None:
            digests[key] = adapted_digest(digests[subject.checkpoint, None], subject.adapter)
    assert encoded is not None
    return Measured(
        models={one.role: Model(one.told, digests[keys[one.role]]) for one in subjects},
        suites={name: data_digest(row.id for row in one.rows) for name, one in encoded.items()},
        losses={role: losses[key] for role, key in keys.items()},
        max_length=max_length,
        notes=tuple(_notes(encoded)),
    )


def _stamps_now(subject: Subject) -> list[list[str | int]]:
    with open_checkpoint(subject.checkpoint) as again:
        return again.stamps()


def _notes(encoded: Mapping[str, Encoded]) -> Iterator[str]:
    for name, one in encoded.items():
        if one.truncated:
            yield f"suite {name}: {one.truncated} rows were cut at {one.max_length} tokens"
        if one.dropped:
            yield f"suite {name}: {one.dropped} rows hold no token to predict and were left out"
