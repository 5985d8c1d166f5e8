"""Functions of this package as the rest calls them: on arrays, compiled or loaded when called."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from blake3 import blake3

from mergekit_cl.native import kept

if TYPE_CHECKING:
    import llvmlite.binding as llvm

Array: TypeAlias = np.ndarray[Any, Any]
"""A flat block: bfloat16 as its bits in uint16, float16 in int16, others as they are."""

Argument = Array | np.floating[Any] | int

SYMBOL = "kernel"


@cache
def can_compile() -> bool:
    """Whether there is a compiler on this Python.

    Only time depends on it: compiled kernels give the same bits. Compiling one takes half a second,
    once on a machine; loading torch takes two, every time.
    """
    return find_spec("numba") is not None


class Kernel:
    """One function of one module here, for whatever types it is called with.

    Takes contiguous arrays, of which it gets the addresses, numpy's float32 and float64, and
    integers. Runs without the interpreter's lock, and returns an integer. A kind of argument is
    numpy's character for a dtype, behind a star for an array.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._loaded: dict[tuple[str, ...], Callable[..., int]] = {}
        self._loading = threading.Lock()

    def __call__(self, *arguments: Argument) -> int:
        kinds = tuple(map(_kind, arguments))
        function = self._loaded.get(kinds)
        if function is None:
            with self._loading:
                function = self._loaded.get(kinds) or self._load(kinds)
                self._loaded[kinds] = function
        return function(*map(_passed, arguments))

    def _load(self, kinds: tuple[str, ...]) -> Callable[..., int]:
        import llvmlite.binding as llvm

        name = f"{self._name}-{made_for(kinds)}.o"
        content = kept.read(name)
        if content is None:
            from mergekit_cl.native.compiling import compile_function

            content = compile_function(self._module, self._name, kinds, SYMBOL, this_processor())
            kept.keep(name, content)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), this_processor())
        engine.add_object_file(llvm.ObjectFileRef.from_data(content))
        engine.finalize_object()
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, *map(_c_type, kinds))
        function = signature(engine.get_function_address(SYMBOL))
        function.engine = engine  # type: ignore[attr-defined]  # code lives as long as its engine
        return function


def this_processor() -> llvm.TargetMachine:
    """What LLVM makes code for: this processor and every feature it has."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


def made_for(kinds: tuple[str, ...]) -> str:
    """A digest of everything that machine code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    sources = sorted(Path(__file__).parent.glob("*.py"))
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    tools = version("numba"), llvmlite.__version__
    digest = blake3("\n".join((*kinds, *processor, *tools)).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _kind(argument: Argument) -> str:
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise ValueError("compiled code takes contiguous arrays")
        return f"*{argument.dtype.char}"
    return argument.dtype.char if isinstance(argument, np.floating) else "l"


def _passed(argument: Argument) -> int | float:
    if isinstance(argument, np.ndarray):
        # numpy's own way to the address is three times slower, and knows arrays of nothing.
        if argument.flags.writeable and argument.size:
            return ctypes.addressof(ctypes.c_char.from_buffer(argument.data))
        return argument.ctypes.data
    return float(argument) if isinstance(argument, np.floating) else argument


def _c_type(kind: str) -> type[Any]:
    if kind[0] == "*":
        return ctypes.c_void_p
    return {"f": ctypes.c_float, "d": ctypes.c_double, "l": ctypes.c_int64}[kind]
