"""Damage to checkpoint files, drawn at random: some of it blind, most of it knowing the format."""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import random
import zipfile
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    255,
    2**31,
    2**32,
    2**40,
    2**61,
    2**62,
    2**63,
    2**64,
    2**200,
    10**400,
)
DTYPES = ("F32", "F64", "BF16", "I64", "U8", "BOOL", "F4", "F8_E4M3", "F8_E8M0", "C64", "f32", "")
OTHERS = (
    None,
    True,
    False,
    0.5,
    1e400,
    "",
    "x",
    "\ud800",
    "é\n\x00",
    [],
    {},
    [[]],
    {"a": 1},
    [0, 8],
)
TOKENS = [
    *'{}[]",:-.eE\\/ntuf0123456789 \n\0',
    "\\u",
    "null",
    "true",
    "NaN",
    "1e999",
    "[" * 999,
    "9" * 999,
]
PATHS = (
    "../secret/model.safetensors",
    "../secret",
    "..",
    ".",
    "",
    "/etc/passwd",
    "/dev/zero",
    "a.safetensors",
    "b.safetensors",
    "./a.safetensors",
    "a.safetensors/",
    "folder",
    "fifo",
    "loop",
    "folder/a.safetensors",
    "config.json",
    "x\0y",
    "x" * 300,
    "https://127.0.0.1:9/x",
    "hf://org/name",
    "C:\\x",
    "\ud800",
)


def damaged_bytes(content: bytes, draw: random.Random, tokens: bool = True) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(made) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(made):
            made[at] = draw.randrange(256)
        elif kind == 1 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del made[at : at + draw.choice((1, 2, 8, 100))]
        elif kind == 3:
            made[at:at] = made[at : at + draw.randrange(1, 40)]
        elif kind == 4 and tokens:
            made[at:at] = draw.choice(TOKENS).encode()
        else:
            made[at:at] = draw.randbytes(draw.choice((1, 2, 8)))
    return bytes(made)


def damaged_json(value: Any, draw: random.Random) -> Any:
    """One or two nodes of a JSON value replaced, removed, doubled or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return _other(draw)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = _other(draw)
        elif kind == 2:
            other, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
        elif kind == 3 and isinstance(holder, dict):
            holder[draw.choice(("__metadata__", "", "a", "w", "\ud800", "x" * 99))] = holder.pop(
                key
            )
        else:
            holder[key] = _like(holder[key], draw)
    return value


def _other(draw: random.Random) -> Any:
    return json.loads(json.dumps(draw.choice(OTHERS)))  # a copy: what is put in may be changed too


def _like(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return _other(draw)
    if isinstance(value, int):
        return draw.choice((draw.choice(NUMBERS), value + draw.choice((-8, -4, -1, 1, 4, 8))))
    return draw.choice(PATHS if value.endswith(("safetensors", "bin")) else DTYPES)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    for key in _keys(value):
        found += [(value, key), *_places(value[key])]
    return found


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def as_json(value: Any, draw: random.Random) -> bytes:
    """The text of a value, as writers spell it; sometimes with a key given twice."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.8)
    if draw.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]
    return text.encode(errors="surrogatepass") + b" " * draw.choice((0, 0, 1, 7))


def damaged_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a damaged length, header or end."""
    length = int.from_bytes(content[:8], "little")
    head, data = content[8 : 8 + length], content[8 + length :]
    kind = draw.randrange(8)
    if kind == 0:
        return damaged_bytes(content, draw)
    if kind == 1:
        size = draw.choice((*NUMBERS[:-2], length + draw.choice((-8, -1, 1, 8)), len(content)))
        return (size % 2**64).to_bytes(8, "little") + head + data
    if kind == 2:
        return content[: draw.randrange(len(content) + 1)]
    if kind == 3:
        return content + draw.randbytes(draw.choice((1, 8, 100)))
    if kind == 4:
        head = damaged_bytes(head, draw)
    else:
        head = as_json(damaged_json(json.loads(head), draw), draw)
    return len(head).to_bytes(8, "little") + head + data


def damaged_torch(content: bytes, draw: random.Random) -> bytes:
    """A torch file with damage in its bytes, its directory, its records or its pickle."""
    kind = draw.randrange(6)
    if kind == 0 or content[:2] != b"PK":
        return damaged_bytes(content, draw, tokens=False)
    if kind == 1:
        # The directory at the end: names, sizes and offsets of all records.
        at = content.index(b"PK\x01\x02")
        return content[:at] + damaged_bytes(content[at:], draw, tokens=False)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in records if name.endswith("data.pkl"))
    if kind == 2:
        name = draw.choice(list(records))
        records[name] = damaged_bytes(records[name], draw, tokens=False)
    elif kind == 3:
        name = draw.choice(list(records))
        records[draw.choice(("x", "../x", name + "x"))] = records.pop(name)
    else:
        records[pickle] = damaged_pickle(records[pickle], draw)
    made = io.BytesIO()
    compression = draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return made.getvalue()


def damaged_pickle(content: bytes, draw: random.Random) -> bytes:
    """Instructions of a pickle left out, doubled, exchanged, or given other operands."""
    starts = [position for _, _, position in pickletools.genops(content)] + [len(content)]
    steps = [content[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(steps))
        kind = draw.randrange(6)
        if kind == 0:
            del steps[at]
        elif kind == 1:
            steps.insert(at, draw.choice(steps))
        elif kind == 2:
            other = draw.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        elif kind == 3:
            steps.insert(at, _instruction(draw))
        elif kind == 4:
            steps[at] = _instruction(draw)
        elif len(steps[at]) > 1:
            operand = bytearray(steps[at])
            operand[draw.randrange(1, len(operand))] = draw.randrange(256)
            steps[at] = bytes(operand)
        if not steps:
            return b"."
    return b"".join(steps)


def _instruction(draw: random.Random) -> bytes:
    number = draw.choice((0, 1, 2, 5, 255, 2**31 - 1))
    return draw.choice(
        (
            b"K" + bytes([draw.randrange(256)]),
            b"J" + number.to_bytes(4, "little", signed=True),
            b"\x8a\x08" + draw.choice((2**40, 2**62, -1)).to_bytes(8, "little", signed=True),
            draw.choice((b"N", b"(", b"t", b")", b"]", b"}", b"0", b"1", b"2", b"R", b"b", b"Q")),
            draw.choice((b"s", b"u", b".")),
            b"h" + bytes([draw.randrange(40)]),
            b"q" + bytes([draw.randrange(40)]),
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._utils\n_rebuild_parameter\n",
            b"ctorch\nFloatStorage\n",
            b"cos\nsystem\n",
            b"cbuiltins\neval\n",
            b"ccollections\nOrderedDict\n",
            b"X\x05\x00\x00\x00model",
            b"\x88",
            b"G" + draw.randbytes(8),
        )
    )  # fmt: skip
