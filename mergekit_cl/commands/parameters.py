"""Kinds of values on the command line: sizes, dtypes, weights."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_DTYPES = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "float32": "F32",
    "fp32": "F32",
    "float64": "F64",
    "fp64": "F64",
}


class Size(click.ParamType[int]):
    """Bytes: a number with an optional unit, `5GB` or `512MiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        unit = _UNITS.get(found.group(2).upper()) if found else None
        size = int(float(found.group(1)) * unit) if found and unit else 0
        if size <= 0:
            self.fail(f"{value!r} is no size: give bytes, or a number with KB, MB, GB or GiB")
        return size


class DType(click.ParamType[str]):
    """A floating dtype by its long or short name; gives safetensors' spelling."""

    name = "dtype"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in _DTYPES.values():
            return str(value)
        if str(value).lower() not in _DTYPES:
            self.fail(f"{value!r} is none of bfloat16, float16, float32, float64")
        return _DTYPES[str(value).lower()]


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers joined by commas: `0.3,0.7`."""

    name = "w1,w2"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers joined by commas")
        if not all(abs(number) < float("inf") for number in numbers):
            self.fail(f"{value!r} holds a number that is not finite")
        return numbers


class Weights(Numbers):
    """Numbers joined by commas, or the word `auto`."""

    name = "w1,w2|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


class BatchSize(click.ParamType[int | None]):
    """Rows per batch; `auto` gives None, which chooses by model and data."""

    name = "rows"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a number of rows")
        return int(value)
