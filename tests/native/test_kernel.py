"""Machine code is compiled once, kept, and loaded without its compiler where it was made for."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mergekit_cl.native import kept, kernel
from mergekit_cl.native.kernel import Kernel

RUN = """
import sys
import numpy as np
from mergekit_cl.native.kernel import Kernel
stored, wide = np.arange(5, dtype=np.float32), np.empty(5)
assert Kernel("wide", "widen_block")(stored, wide, 5) == 0
assert wide.tolist() == [0, 1, 2, 3, 4]
print("numba" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clmerge" / "native"


def widened(values: list[float]) -> list[float]:
    """By a kernel of its own, which knows nothing of what others loaded."""
    stored, wide = np.asarray(values, np.float32), np.empty(len(values))
    assert Kernel("wide", "widen_block")(stored, wide, len(values)) == 0
    return wide.tolist()


def compiled(cache: Path) -> bool:
    """Whether a process of its own had to compile."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache.parents[1])},
    )
    return {"True\n": True, "False\n": False}[ran.stdout]


def test_a_second_process_loads_what_the_first_compiled(cache: Path) -> None:
    assert compiled(cache)
    assert len(list(cache.iterdir())) == 1
    assert not compiled(cache)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_what_is_damaged_is_compiled_again(cache: Path, damage: str) -> None:
    assert widened([1.0, 2.0]) == [1.0, 2.0]
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    path.write_bytes({"cut": whole[:-100], "flipped": flipped, "empty": b""}[damage])
    assert widened([1.0, 2.0]) == [1.0, 2.0]
    assert len(path.read_bytes()) == len(whole)
    assert kept.read(path.name) is not None


@pytest.mark.parametrize("differs", ["processor", "features", "compiler", "source", "types"])
def test_code_for_anything_else_is_not_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch, differs: str
) -> None:
    import llvmlite.binding as llvm

    before = kernel.made_for(("*f",))
    assert kernel.made_for(("*f",)) == before
    kinds: tuple[str, ...] = ("*f",)
    if differs == "processor":
        monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "another")
    elif differs == "features":
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: llvm.FeatureMap({"x": True}))
    elif differs == "compiler":
        monkeypatch.setattr(kernel, "version", lambda name: "0.0")
    elif differs == "source":
        monkeypatch.setattr(kernel, "__file__", str(cache / "kernel.py"))
    else:
        kinds = ("*d",)
    assert kernel.made_for(kinds) != before


def test_without_a_cache_it_compiles_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert widened([3.0]) == [3.0]

    def unknown() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    assert widened([4.0]) == [4.0]


def test_threads_that_call_at_once_load_it_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(name: str) -> bytes | None:
        read.append(name)
        return usual(name)

    usual = kept.read
    monkeypatch.setattr(kept, "read", counted)
    called = Kernel("wide", "widen_block")
    stored = np.ones(3, np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: called(stored, np.empty(3), 3), range(16)))
    assert found == [0] * 16
    assert len(read) == 1


def test_arrays_may_be_empty_or_read_only(cache: Path) -> None:
    assert widened([]) == []
    stored, wide = np.ones(2, np.float32), np.empty(2)
    stored.flags.writeable = False
    assert Kernel("wide", "widen_block")(stored, wide, 2) == 0
    assert wide.tolist() == [1, 1]


def test_an_array_with_gaps_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Kernel("wide", "widen_block")(np.ones(4, np.float32)[::2], np.empty(2), 2)
