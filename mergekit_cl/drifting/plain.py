"""A tree of dataclasses back out of the plain values that `dataclasses.asdict` made of it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mergekit_cl.errors import FormatError

Kind = TypeVar("Kind")
Path = tuple[str, ...]


def from_plain(kind: type[Kind], content: Any, where: str, path: Path = ()) -> Kind:
    """An instance of the dataclass `kind`; every field has to be there, none more, each its type.

    where: the file, path: the keys that lead to `content`, for messages. Raises FormatError.
    """
    try:
        made: Kind = _value(kind, content, path)
    except ValueError as error:
        raise FormatError(
            "a stored state is not what was stored", detail=f"{where}: {error}"
        ) from None
    return made


def _value(kind: Any, content: Any, path: Path) -> Any:
    if is_dataclass(kind):
        return _instance(kind, content, path)
    origin = get_origin(kind)
    if origin is Literal:
        if content in get_args(kind):
            return content
    elif origin is UnionType:
        inner = [choice for choice in get_args(kind) if choice is not NoneType]
        return None if content is None else _value(inner[0], content, path)
    elif origin is list:
        if isinstance(content, list):
            return [_value(get_args(kind)[0], item, path) for item in content]
    elif kind is float:
        if isinstance(content, int | float) and not isinstance(content, bool) and isfinite(content):
            return float(content)
    elif type(content) is kind:
        return content
    raise ValueError(f"{'.'.join(path)} = {content!r:.60}")


def _instance(kind: Any, content: Any, path: Path) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{'.'.join(path)} = {content!r:.60}")
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in names:
        if name not in content:
            raise ValueError(f"{'.'.join((*path, name))} is not there")
    for name in content:
        if name not in names:
            raise ValueError(f"{'.'.join((*path, name))} is unknown")
    values = {name: _value(types[name], content[name], (*path, name)) for name in names}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{'.'.join(path)}: {error}") from None
