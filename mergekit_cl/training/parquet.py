"""The records of a parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_cl.errors import DataError

SUFFIX = ".parquet"
ROWS_AT_ONCE = 1024


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row, counted from 1; a null is a field that is not there.

    Parquet has a place for every field in every row, json only for those that a row has: without
    nulls a row is the same row, with the same id, in both. Raises DataError without pyarrow, for
    what is no parquet file, and for columns of the same name.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "reading parquet needs pyarrow",
            detail=f"{path}: {error}",
            hint="pip install 'clmerge[parquet]'",
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(
                    "two columns have the same name", detail=f"{path}: {', '.join(names):.100}"
                )
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", _without_nulls(fields)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError("the parquet file cannot be read", detail=f"{path}: {reason}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
