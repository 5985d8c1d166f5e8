"""From a function of this package to machine code, by numba: half a second, and its loading."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import llvmlite.binding as llvm
from numba import cfunc, types

TYPES = {
    "H": types.uint16,
    "h": types.int16,
    "l": types.int64,
    "f": types.float32,
    "d": types.float64,
}
"""By numpy's characters."""


def compile_function(
    module: str, name: str, kinds: Sequence[str], symbol: str, target: llvm.TargetMachine
) -> bytes:
    """An object file in which `symbol` is a function of this package for the types of `kinds`.

    kinds: as of kernel.py. Arithmetic is as written (no contraction, no other order), unless the
    module has a `FASTMATH`; a division by 0 raises nothing.
    """
    holder = import_module(f"mergekit_cl.native.{module}")
    arguments = [
        types.CPointer(TYPES[kind[1:]]) if kind[0] == "*" else TYPES[kind] for kind in kinds
    ]
    compiled = cfunc(
        types.int64(*arguments),
        fastmath=set(getattr(holder, "FASTMATH", ())),
        error_model="numpy",
    )(getattr(holder, name))
    made = llvm.parse_assembly(compiled.inspect_llvm())
    made.get_function(compiled.native_name).name = symbol
    return bytes(target.emit_object(made))
