"""The rows of each task: those to learn, and those it is judged by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_cl.errors import DataError
from mergekit_cl.training.data import data_digest, read_rows
from mergekit_cl.training.encode import Encoded, EncodedRow, encode
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.order import set_aside
from mergekit_cl.tuning.schema import Config, Task

if TYPE_CHECKING:
    from mergekit_cl.training.architecture import Task as Kind

CHARACTERS_PER_TOKEN = 4  # of English: how long a passage of plain text is cut


@dataclass(frozen=True)
class Reader:
    """How rows become tokens: one model's tokenizer, config.json and limits."""

    tokenizer: Any
    kind: Kind
    config: Mapping[str, Any]
    max_length: int
    completion_only: bool

    def encode(self, rows: Sequence[Row], where: str) -> Encoded:
        """Rows as tokens; raises DataError for rows without a label and where none is left."""
        try:
            encoded = encode(
                rows,
                self.tokenizer,
                task=self.kind,
                config=self.config,
                max_length=self.max_length,
                completion_only=self.completion_only,
            )
        except DataError as error:
            error.detail = f"{where}: {error.detail}"
            raise
        if encoded.unlabelled:
            raise DataError(
                "training a classifier needs a label in every row",
                detail=f"{where}: {encoded.unlabelled} of {len(rows)} rows have none",
                hint="name their field with label_field",
            )
        return encoded


@dataclass(frozen=True)
class TaskRows:
    """One task's rows. train, encoded: {row id: row} in the order of the files.

    validation: empty where the task has none. truncated: rows to learn that were cut; dropped: left
    out, since no token of them carries a loss.
    """

    name: str
    train: Mapping[str, Row]
    encoded: Mapping[str, EncodedRow]
    validation: Mapping[str, Row]
    judged: Encoded | None
    truncated: int
    dropped: int

    @property
    def digest(self) -> str:
        """Names the rows: another digest, another task."""
        return data_digest([*self.train, "", *self.validation])


def read_tasks(config: Config, reader: Reader, held_out: Collection[str]) -> tuple[TaskRows, ...]:
    """Read and encode the rows of all tasks.

    held_out: ids of rows that earlier runs validate by. Rows that validate any task are trained on
    by none. Raises DataError for files that cannot be read, labels that the model does not know,
    and a task without rows to learn.
    """
    divided = [_divide(task, config) for task in config.task]
    forbidden = {row for _, validation in divided for row in validation} | set(held_out)
    return tuple(
        _encoded(task, train, validation, forbidden, reader)
        for task, (train, validation) in zip(config.task, divided, strict=True)
    )


def _divide(task: Task, config: Config) -> tuple[dict[str, Row], dict[str, Row]]:
    """Rows to learn, rows to validate by."""

    def read(paths: Sequence[str]) -> dict[str, Row]:
        rows = read_rows(
            paths,
            text_field=task.text_field,
            label_field=task.label_field,
            passage=CHARACTERS_PER_TOKEN * config.batch.max_length,
        )
        return {row.id: row for row in rows}

    train = read(task.data)
    if task.validation:
        return train, read(task.validation)
    share = task.validation_share
    return train, {name: row for name, row in train.items() if set_aside(name, share)}


def _encoded(
    task: Task,
    train: Mapping[str, Row],
    validation: Mapping[str, Row],
    forbidden: Collection[str],
    reader: Reader,
) -> TaskRows:
    learnt = {name: row for name, row in train.items() if name not in forbidden}
    if not learnt:
        raise DataError(
            "a task has no rows to learn",
            detail=f"task {task.name}: {len(train)} rows, all of them held out for validation",
            hint="give more rows, or a smaller validation_share",
        )
    encoded = reader.encode(tuple(learnt.values()), f"task {task.name}")
    found = {row.id: row for row in encoded.rows}
    judged = None
    if validation:
        judged = reader.encode(tuple(validation.values()), f"task {task.name}, validation")
    return TaskRows(
        name=task.name,
        train={name: row for name, row in learnt.items() if name in found},
        encoded={name: found[name] for name in learnt if name in found},
        validation=dict(validation),
        judged=judged,
        truncated=encoded.truncated,
        dropped=encoded.dropped,
    )
