"""Hostile checkpoints by the thousand: `python tests/fuzz_headers.py --count 100000 --seed 1`.

Every case is an error of ours or a correct read; never another exception, a hang, a large
allocation, or a file touched outside its folder. A case is known by its number: `--only NUMBER`
runs it alone, with its traceback, and keeps its files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from hostile import Violation, Watch, examine
from making import model_tensors, raw_safetensors, same_bits, write_index
from mutations import (
    as_json,
    damaged_bytes,
    damaged_json,
    damaged_safetensors,
    damaged_torch,
)
from safetensors.torch import save

from mergekit_cl.checkpoint.pickled import find_state_dict

Found = dict[str, Any]


class Cases:
    """Makes the files of each case in one folder, emptied in between.

    folder: beside it lies a checkpoint that no case may reach.
    """

    def __init__(self, base: Path) -> None:
        self.folder = base / "case"
        self.secret = base / "secret"
        self.secret.mkdir()
        (self.secret / "model.safetensors").write_bytes(save({"w": torch.ones(3)}))
        self.single = [
            save({"w": torch.ones(3), "v": torch.ones(2, 2).bfloat16()}, {"format": "pt"}),
            save({"x": torch.zeros(0, 3), "y": torch.tensor(1), "é\n": torch.zeros(2).half()}),
            save(model_tensors(1), {"format": "pt"}),
            raw_safetensors({}),
            raw_safetensors({"p": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"ab"),
        ]
        tied = torch.arange(6.0)
        contents: list[object] = [
            {"w": torch.ones(3), "b": torch.tensor([True, False]), "i": torch.arange(4)},
            {"model": {"embed": tied, "head": tied, "turned": tied.view(2, 3).T}, "step": 3},
            {"state_dict": {"p": torch.nn.Parameter(torch.ones(2, 2).bfloat16())}},
        ]
        self.torch = [_saved(c, legacy) for c in contents for legacy in (False, False, True)]

    def make(self, draw: random.Random) -> tuple[str, Path, Callable[[Found], bool]]:
        """(kind, the path to open, whether what was read is right)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return draw.choices((self._header, self._index, self._torch), (11, 4, 5))[0](draw)

    def _header(self, draw: random.Random) -> tuple[str, Path, Callable[[Found], bool]]:
        path = self.folder / draw.choice(("x.safetensors", "model.safetensors", "x.bin", "x"))
        content = damaged_safetensors(draw.choice(self.single), draw)
        path.write_bytes(content)
        place = self.folder if path.name == "model.safetensors" and draw.random() < 0.5 else path
        if draw.random() < 0.05:
            config = as_json(damaged_json({"model_type": "llama", "layers": [1, 2]}, draw), draw)
            (self.folder / "config.json").write_bytes(config)
        return "header", place, lambda found: _as_the_library(content, found)

    def _index(self, draw: random.Random) -> tuple[str, Path, Callable[[Found], bool]]:
        for name, tensor in (("a", 1.0), ("b", 2.0)):
            content = save({name: torch.full((3,), tensor)})
            if draw.random() < 0.1:
                content = damaged_safetensors(content, draw)
            (self.folder / f"{name}.safetensors").write_bytes(content)
        (self.folder / "folder").mkdir()
        (self.folder / "folder/a.safetensors").write_bytes(save({"a": torch.zeros(1)}))
        os.mkfifo(self.folder / "fifo")
        (self.folder / "loop").symlink_to("loop")
        index = self.folder / "model.safetensors.index.json"
        write_index(index, {"a": "a.safetensors", "b": "b.safetensors"})
        content = as_json(damaged_json(json.loads(index.read_text()), draw), draw)
        if draw.random() < 0.3:
            content = damaged_bytes(content, draw)
        index.write_bytes(content)
        place = draw.choice((self.folder, index))
        return "index", place, lambda found: all(map(self._is_own, found))

    def _is_own(self, name: str) -> bool:
        files = [self.folder / "a.safetensors", self.folder / "b.safetensors"]
        return any(json.dumps(name).encode() in f.read_bytes() for f in files) or name.isascii()

    def _torch(self, draw: random.Random) -> tuple[str, Path, Callable[[Found], bool]]:
        path = self.folder / draw.choice(("pytorch_model.bin", "x.pt", "x.pth", "x.safetensors"))
        content = damaged_torch(draw.choice(self.torch), draw)
        path.write_bytes(content)
        return "torch", path, lambda found: _as_torch(content, path, found)


def _saved(content: object, legacy: bool) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, _use_new_zipfile_serialization=not legacy)
    return made.getvalue()


def _as_the_library(content: bytes, found: Found) -> bool:
    if b"-0" in content[8:]:  # Python reads it as the integer 0, the library as a float
        return True
    if content[:1] == b"\x80" or content[:2] == b"PK":
        return True
    theirs = dict(safetensors.deserialize(content))
    return all(
        list(tensor.shape) == theirs[name]["shape"]
        and bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == bytes(theirs[name]["data"])
        for name, tensor in found.items()
    )


def _as_torch(content: bytes, path: Path, found: Found) -> bool:
    if content[8:9] == b"{":
        return _as_the_library(content, found)
    return any(_is_same(_loaded(source, path), found) for source in (io.BytesIO(content), path))


def _loaded(source: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict as torch loads it; both ways, because from a damaged archive that is not
    mapped it may give what lay in memory before."""
    mapped = source is path and zipfile.is_zipfile(path)
    whole = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    return find_state_dict(whole, path)


def _is_same(theirs: Mapping[str, torch.Tensor], found: Found) -> bool:
    # A damaged truth value is neither 0 nor 1, and copying it may make it one of them.
    return theirs.keys() == found.keys() and all(
        same_bits(tensor, _plain(theirs[name])) or tensor.dtype == torch.bool
        for name, tensor in found.items()
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the strides that a tensor of its shape has when it is new."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def run(count: int, seed: int, only: int | None = None) -> int:
    """Run the cases, print what came of them; gives the number of violations."""
    warnings.simplefilter("ignore")
    base = Path(tempfile.mkdtemp(prefix="hostile-"))
    cases, watch = Cases(base), Watch()
    seen: Counter[tuple[str, str]] = Counter()
    failed = 0
    started = time.monotonic()
    for number in range(count) if only is None else [only]:
        kind, path, is_right = cases.make(random.Random(f"{seed}:{number}"))
        try:
            found = examine(path, cases.folder, watch)
            if found is not None and not is_right(found):
                raise Violation("what was read is not what the library reads")
        except Exception as error:
            failed += 1
            sys.stderr.write(f"case {number} ({kind}): {error!s:.300}\n")
            if only is not None:
                sys.stderr.write(f"its files: {cases.folder}\n")
                raise
            continue
        seen[kind, "refused" if found is None else "read"] += 1
        if number % 10_000 == 9_999:
            sys.stderr.write(f"{number + 1} cases, {time.monotonic() - started:.0f} s\n")
    shutil.rmtree(base)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = ", ".join(f"{kind} {what}: {n}" for (kind, what), n in sorted(seen.items()))
    sys.stdout.write(
        f"seed {seed}: {sum(seen.values()) + failed} cases, {failed} violations; {told}; "
        f"{time.monotonic() - started:.0f} s, peak {peak} MiB\n"
    )
    return failed


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    sys.exit(1 if run(given.count, given.seed, given.only) else 0)


if __name__ == "__main__":
    main()
