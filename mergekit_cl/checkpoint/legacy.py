"""What torch's format before 1.6 claims, found without unpickling it.

Such a file is five pickles (magic number, protocol, byte order, the object, the keys of its
storages) and then the storages' bytes. Its loader reserves as many elements as the object names,
and hands out whatever memory holds for a storage whose bytes are not in the file.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, BinaryIO

from mergekit_cl.errors import FormatError

OBJECT, KEYS = 3, 4
MAGIC = 0x1950A86A20F9469CFC6C
_TEXT = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "UNICODE"})
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"})
_PUTS = frozenset({"BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})


def is_legacy(stream: BinaryIO) -> bool:
    """Whether the first pickle of a stream is torch's magic number, in whatever protocol."""
    return any(operand == MAGIC for _, operand, _ in pickletools.genops(stream))


def check_legacy(stream: BinaryIO, size: int, where: Path) -> None:
    """Refuse a file of `size` bytes with a storage that is larger, or whose bytes it lacks.

    Raises FormatError, or what pickletools raises for a pickle that is none.
    """
    named: dict[Any, Any] = {}
    keys: set[Any] = set()
    for number in range(KEYS + 1):
        found, texts = _storages(stream)
        if number == OBJECT:
            named = found
        elif number == KEYS:
            keys = texts
    for key, count in named.items():
        if not isinstance(count, int) or not 0 <= count <= size or key not in keys:
            raise FormatError(
                "the file is truncated or is no torch checkpoint",
                detail=f"{where}: a storage of {count!r:.40} elements is not in it",
                hint="fetch or save the file again; it was not changed",
            )


def _storages(stream: BinaryIO) -> tuple[dict[Any, Any], set[Any]]:
    """Read one pickle: ({key: elements} of the storages it names, all its texts).

    A storage is a persistent id: ('storage', type, key, device, elements, view), written as
    literals between a mark and a tuple. None stands for what is anything else, and for elements
    that are named by different numbers.
    """
    named: dict[Any, Any] = {}
    texts: set[Any] = set()
    kept: dict[Any, Any] = {}
    values: list[Any] = []
    whole: list[Any] = []
    for opcode, operand, _ in pickletools.genops(stream):
        if opcode.name in _PUTS:
            kept[operand] = values[-1] if values else None
            continue
        if opcode.name == "BINPERSID":
            key, count = (whole[2], whole[4]) if len(whole) == 6 else (None, None)
            named[key] = count if named.get(key, count) == count else None
        whole = []
        if opcode.name == "MARK":
            values = []
        elif opcode.name == "TUPLE":
            whole, values = values, [None]
        elif opcode.name in _GETS:
            values.append(kept.get(operand))
        elif opcode.name in _TEXT | _NUMBERS:
            values.append(operand)
            if opcode.name in _TEXT:
                texts.add(operand)
        else:
            values.append(None)
    return named, texts
