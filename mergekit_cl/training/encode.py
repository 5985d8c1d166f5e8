"""From rows of text to the batches an estimator takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fisher.batch import IGNORE, UNKNOWN, Batch
from mergekit_cl.errors import DataError, InputError
from mergekit_cl.training.architecture import Task
from mergekit_cl.training.labels import class_index, class_names
from mergekit_cl.training.rows import Row
from mergekit_cl.training.tokenizer import length_limit, pad_id
from mergekit_cl.training.tokens import tokenize


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """ids: tokens. labels: one per token (a language model) or one alone (a classifier)."""

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """Rows ready for a model, longest first, then by id: an order that depends on nothing else.

    truncated: rows cut at `max_length` tokens. dropped: rows without a position that carries a
    loss, which are not among `rows`. unlabelled: rows of a classifier whose label is not known.
    """

    task: Task
    rows: tuple[EncodedRow, ...]
    max_length: int
    pad_id: int
    truncated: int
    dropped: int
    unlabelled: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there is none."""
        return len(self.rows[0].ids) if self.rows else 0

    def batches(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Batches of `size` rows from batch number `start` on; the last may be smaller."""
        for first in range(start * size, len(self.rows), size):
            yield collate(self.rows[first : first + size], self.pad_id, self.task)


def encode(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    task: Task,
    config: Mapping[str, Any],
    max_length: int,
    completion_only: bool = True,
) -> Encoded:
    """Tokenize rows for a model whose config.json holds `config`.

    A row is one example: what goes beyond `max_length` tokens, or beyond what the model can read,
    is cut off and counted. completion_only: prompts and what others say in a chat carry no loss.
    Raises DataError for rows the task cannot use and where no row is left.
    """
    limit = length_limit(tokenizer, config)
    length = max_length if limit is None else min(max_length, limit)
    names = class_names(config) if task == "classifier" else ()
    encoded: list[EncodedRow] = []
    truncated = unlabelled = 0
    for row in rows:
        if task == "classifier":
            ids, cut = _for_classifier(row, tokenizer, length)
            labels: tuple[int, ...] = (_class(row, names),)
            unlabelled += labels[0] == UNKNOWN
        else:
            ids, labels, cut = _for_language_model(row, tokenizer, length, completion_only)
        truncated += cut
        _check_vocabulary(ids, config, row)
        if ids and any(label != IGNORE for label in labels):
            encoded.append(EncodedRow(row.id, ids, labels))
    if not encoded:
        raise DataError(
            "no row is left to compute on",
            detail=f"{len(rows)} rows, none with a token to predict within {length} tokens",
            hint="rows need at least two tokens, and prompts must leave room for the completion",
        )
    encoded.sort(key=lambda row: (-len(row.ids), row.id))
    dropped = len(rows) - len(encoded)
    return Encoded(
        task, tuple(encoded), length, pad_id(tokenizer, config), truncated, dropped, unlabelled
    )


def collate(rows: Sequence[EncodedRow], pad: int, task: Task) -> Batch:
    """Rows as one batch, padded on the right to the longest of them.

    inputs: input_ids and attention_mask, (B, T) int64. labels: (B,) or (B, T) int64.
    """
    width = max(len(row.ids) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, pad, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE, dtype=torch.int64)
    for index, row in enumerate(rows):
        count = len(row.ids)
        ids[index, :count] = torch.tensor(row.ids)
        mask[index, :count] = 1
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    return Batch(
        {"input_ids": ids, "attention_mask": mask},
        labels[:, 0].clone() if task == "classifier" else labels,
        tuple(row.id for row in rows),
    )


def auto_batch_size(parameters: int, longest: int) -> int:
    """Rows per batch from the model's size and the longest row: a power of two from 1 to 32.

    Aims at 2048 tokens a batch, half of that for each factor of four above 2**24 parameters. The
    time per token falls little beyond 500 tokens, while activations grow with both: those of 512
    tokens of SmolLM2-135M are 1.3 GB.
    """
    tokens = 2048
    size = 2**24
    while parameters > size and tokens > 256:
        tokens //= 2
        size *= 4
    rows = max(1, min(32, tokens // max(1, longest)))
    return 1 << (rows.bit_length() - 1)


def _for_language_model(
    row: Row, tokenizer: Any, length: int, completion_only: bool
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Tokens, and for each the one that follows it where the model is asked for that."""
    tokens = tokenize(row, tokenizer)
    ids, asked = tokens.ids[:length], tokens.asked[:length]
    following = zip(ids[1:], asked[1:], strict=True)
    labels = (
        *(token if wanted or not completion_only else IGNORE for token, wanted in following),
        IGNORE,
    )
    return ids, labels[: len(ids)], len(tokens.ids) > length


def _for_classifier(row: Row, tokenizer: Any, length: int) -> tuple[tuple[int, ...], bool]:
    if row.kind not in ("labelled", "text"):
        raise DataError(
            "a classifier takes rows with text and label",
            detail=f"{row.where} is a {row.kind}",
        )
    tokens = tokenize(row, tokenizer)
    if len(tokens.ids) <= length:
        return tokens.ids, False
    # The tokenizer's own cut keeps the special tokens at the end, which a classifier may read.
    ids = tokenizer(row.content["text"], truncation=True, max_length=length)["input_ids"]
    return tuple(ids), True


def _class(row: Row, names: tuple[str, ...]) -> int:
    if row.kind == "text":
        return UNKNOWN
    return class_index(row.content["label"], names, row.where)


def _check_vocabulary(ids: tuple[int, ...], config: Mapping[str, Any], row: Row) -> None:
    size = config.get("vocab_size")
    if isinstance(size, int) and ids and max(ids) >= size:
        raise InputError(
            "the tokenizer does not belong to the model",
            detail=f"{row.where} has token {max(ids)}, the model knows {size}",
            hint="copy the model's own tokenizer files beside its weights",
        )
