"""What an index says: which file holds which tensor. Its files lie beside it or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mergekit_cl.errors import FormatError


def read_index(path: Path) -> dict[str, str]:
    """The weight map of an index on the disk, every file of which lies beside it and exists.

    Raises FormatError.
    """
    return parse_index(path.read_bytes(), str(path), lambda name: _is_file(path.parent / name))


def parse_index(raw: bytes, where: str, exists: Callable[[str], bool]) -> dict[str, str]:
    """The weight map in an index's bytes; exists: whether a file of this name lies beside it.

    where: the index's name for messages. Raises FormatError.
    """

    def broken(what: str, value: object = None) -> FormatError:
        detail = where if value is None else f"{where}: {value!s:.120}"
        return FormatError(f"the index {what}", detail=detail, hint="fetch or save it again")

    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise broken("is not JSON") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken("has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise broken("names no file for a tensor", ascii(name))
    for file in dict.fromkeys(weight_map.values()):
        if file != Path(file).name or file in ("", ".", ".."):
            raise broken("names a file outside its folder", ascii(file))
        if not exists(file):
            raise broken("names a file that is not there", ascii(file))
    return weight_map


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than names may be, or no text at all
        return False
