"""How long `clmerge inspect` takes on the headers of a model of 700 billion parameters.

    python benchmarks/inspect_index.py [FOLDER]

Makes about 90,000 tensors in 200 files in FOLDER (default: a temporary one): real headers, and
holes where the weights would be, so that 1.4 TB take 12 MB of disk. Prints wall and processor time
of whole commands, median of several, beside two floors: `clmerge inspect` of a model of one tensor
(start-up) and parsing the same headers and index as JSON without a look at them. The project wants
at most 2 s after start-up. (Not named inspect.py: a script's folder comes first on Python's path,
and every module that imports the standard library's `inspect` would get this one.)
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROUNDS = 7
LIMIT = 2.0
FILES = 200
HIDDEN, INNER, LAYERS, EXPERTS, WORDS = 7168, 1064, 61, 490, 129_280
PARSE = """
import json, pathlib, sys
root = pathlib.Path(sys.argv[1])
for path in root.glob("*.safetensors"):
    with path.open("rb") as stream:
        json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
json.loads((root / "model.safetensors.index.json").read_bytes())
"""


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a mixture of experts."""
    yield "model.embed_tokens.weight", (WORDS, HIDDEN)
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        yield stem + "input_layernorm.weight", (HIDDEN,)
        yield stem + "post_attention_layernorm.weight", (HIDDEN,)
        for name in ("q_proj", "kv_proj", "o_proj"):
            yield f"{stem}self_attn.{name}.weight", (HIDDEN, HIDDEN)
        for expert in range(EXPERTS):
            for name in ("gate_proj", "up_proj"):
                yield f"{stem}mlp.experts.{expert}.{name}.weight", (INNER, HIDDEN)
            yield f"{stem}mlp.experts.{expert}.down_proj.weight", (HIDDEN, INNER)


def write_headers(root: Path, tensors: list[tuple[str, tuple[int, ...]]], files: int) -> None:
    """A checkpoint of bfloat16 zeros that were never written."""
    root.mkdir(parents=True, exist_ok=True)
    per_file = -(-len(tensors) // files)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in sorted(tensors[number * per_file : (number + 1) * per_file]):
            begin, end = end, end + 2 * math.prod(shape)
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
            weight_map[name] = file
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        (root / file).write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(root / file, 8 + len(text) + end)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor time of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(root: Path) -> None:
    """Time each line in turn, so that all meet the same machine."""
    tensors = list(shapes())
    write_headers(root / "large", tensors, FILES)
    write_headers(root / "small", tensors[:1], 1)
    parameters = sum(math.prod(shape) for _, shape in tensors)
    print(f"{len(tensors):,} tensors, {parameters / 1e9:.0f} billion parameters, {FILES} files")
    inspect = ["-m", "mergekit_cl", "inspect"]
    lines = {
        "start-up: inspect of one tensor": [*inspect, str(root / "small")],
        "json.loads of every header": ["-c", PARSE, str(root / "large")],
        "clmerge inspect": [*inspect, str(root / "large")],
        "clmerge inspect --tensors": [*inspect, str(root / "large"), "--tensors"],
        "clmerge inspect --json": [*inspect, str(root / "large"), "--json"],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    for _ in range(ROUNDS):
        for name, arguments in lines.items():
            times[name].append(seconds(arguments))
    start_up = statistics.median(wall for wall, _ in times["start-up: inspect of one tensor"])
    for name, measured in times.items():
        wall, busy = (statistics.median(values) for values in zip(*measured, strict=True))
        after = f"{wall - start_up:6.2f} s after start-up" if "clmerge" in name else " " * 23
        print(f"{wall:6.2f} s wall  {busy:6.2f} s processor  {after}  {name}")
    print(f"wanted: at most {LIMIT} s after start-up for clmerge inspect")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
