"""What merging an adapter into a checkpoint costs beside copying it and beside other tools.

    python benchmarks/lora.py --work DIR [--base MODEL] [--layers 22] [--rank 16] [--runs 3]
        [--mergekit PYTHON]

Rows run in turn, each in a process of its own that loads its libraries before its clock starts; the
smallest of `--runs` counts. copy: every file read and written by two threads, forced to the disk.
products: the float64 products B @ A of all layers alone, one thread per core, each in blocks of
2^17 elements: the least that exact arithmetic costs. clmerge: `lora-merge`, without and with its
report. peft: the model built in its own dtype, `merge_and_unload`, `save_pretrained`, a sync.
mergekit: its `MODEL+ADAPTER` notation, in the environment of the python that --mergekit names, a
sync. CPU: seconds of all cores together. Memory: the largest anonymous resident set during the row,
less what it was before. Without --base a synthetic Llama of 1.1 B parameters in bfloat16 is
written. The adapter is of random factors on all linear layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import PIECE, Peak, machine, processor_seconds, table, touch

ROWS = ("copy", "products", "clmerge", "clmerge+report", "peft", "mergekit")
THREADS = min(len(os.sched_getaffinity(0)), 8)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BLOCK = 2**17


def write_adapter(folder: Path, base: Path, rank: int) -> None:
    """Random factors on every linear layer of a checkpoint, as PEFT saves them."""
    import torch
    from safetensors.torch import save_file

    from mergekit_cl.checkpoint import open_checkpoint

    torch.manual_seed(0)
    tensors = {}
    for name, info in open_checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in LINEAR:
            rows, columns = info.shape
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, columns) * 0.01
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank) * 0.01
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(LINEAR),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def copy(base: Path, out: Path) -> None:
    """Read and write every byte, and force it to the disk."""
    out.mkdir()

    def one(file: Path) -> None:
        buffer = memoryview(bytearray(PIECE))
        with file.open("rb", buffering=0) as source, (out / file.name).open("wb") as target:
            while count := source.readinto(buffer):
                target.write(buffer[:count])
            target.flush()
            os.fsync(target.fileno())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, sorted(base.glob("*.safetensors"))))


def products(adapter: Path) -> None:
    """B @ A of every layer in float64, block by block, into one buffer per thread."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    pairs = [
        (tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double())
        for name in tensors
        if "lora_A" in name
    ]
    torch.set_num_threads(1)

    def one(pair: tuple[Any, Any]) -> None:
        down, up = pair
        height = max(BLOCK // down.shape[1], 1)
        buffer = torch.zeros(height, down.shape[1], dtype=torch.float64)
        for start in range(0, len(up), height):
            rows = up[start : start + height]
            buffer[: len(rows)].addmm_(rows, down)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, pairs))


def clmerge(base: Path, adapter: Path, out: Path, report: bool) -> Callable[[], None]:
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.lora.adapter import open_adapter
    from mergekit_cl.merging import OutputOptions, run_merge
    from mergekit_cl.methods.lora import lora_method
    from mergekit_cl.report.progress import no_progress

    def run() -> None:
        method = lora_method(
            open_checkpoint(base),
            [open_adapter(adapter)],
            scales=None,
            undo="base",
            allow_other_base=False,
            carry=False,
        )
        run_merge(method, OutputOptions(out, report=report), no_progress)

    return run


def peft(base: Path, adapter: Path, out: Path) -> Callable[[], None]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def run() -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
        os.sync()

    return run


MERGEKIT = """
import os, sys, time
sys.path.insert(0, sys.argv[4])
from measuring import Peak, processor_seconds
import peft, torch, transformers, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
options = MergeOptions(copy_tokenizer=False, lora_merge_cache=sys.argv[3], quiet=True)
with Peak() as peak:
    started, used = time.perf_counter(), processor_seconds()
    run_merge(config, sys.argv[2], options)
    os.sync()
    print(time.perf_counter() - started, processor_seconds() - used, peak.largest - peak.before)
"""


def mergekit(given: argparse.Namespace) -> dict[str, float]:
    """The row of mergekit, measured in its own environment."""
    config, cache = given.work / "mergekit.yml", given.work / "cache"
    model = {"model": f"{given.base}+{given.work / 'adapter'}"}
    config.write_text(
        json.dumps({"merge_method": "passthrough", "dtype": "bfloat16", "models": [model]})
    )
    shutil.rmtree(cache, ignore_errors=True)
    here = str(Path(__file__).parent)
    command = [
        given.mergekit,
        "-c",
        MERGEKIT,
        str(config),
        str(given.work / "out"),
        str(cache),
        here,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"mergekit failed:\n{done.stderr[-2000:]}")
    seconds, used, memory = map(float, done.stdout.split()[-3:])
    return {"seconds": seconds, "cpu": used, "memory": memory}


def child(given: argparse.Namespace) -> None:
    """Run one row in this process and print what it cost."""
    import torch  # noqa: F401 - before the clock

    row, out = given.child, given.work / "out"
    base, adapter = given.base, given.work / "adapter"
    work: Callable[[], None]
    if row == "copy":
        work = lambda: copy(base, out)  # noqa: E731
    elif row == "products":
        work = lambda: products(adapter)  # noqa: E731
    elif row == "peft":
        work = peft(base, adapter, out)
    else:
        work = clmerge(base, adapter, out, row.endswith("report"))
    with Peak() as peak:
        started, used = time.perf_counter(), processor_seconds()
        work()
        seconds, cpu = time.perf_counter() - started, processor_seconds() - used
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": peak.largest - peak.before}))


def measure(row: str, given: argparse.Namespace) -> dict[str, float]:
    shutil.rmtree(given.work / "out", ignore_errors=True)
    os.sync()
    touch(sorted(given.base.glob("*.safetensors")))
    if row == "mergekit":
        return mergekit(given)
    command = [sys.executable, __file__, "--child", row, "--work", str(given.work)]
    command += ["--base", str(given.base)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS) if row == "peft" else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    shutil.rmtree(given.work / "out", ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{row} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--mergekit")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    if given.base is None:
        from benchmarks.synthetic import config, write_model

        given.base = given.work / "base"
        write_model(given.base, given.layers, 1)
        (given.base / "config.json").write_text(json.dumps(config(given.layers)))
    shutil.rmtree(given.work / "adapter", ignore_errors=True)
    write_adapter(given.work / "adapter", given.base, given.rank)
    rows = [row for row in given.rows.split(",") if row != "mergekit" or given.mergekit]
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(given.runs):
        for row in rows:
            found[row].append(measure(row, given))
    best = {row: min(one["seconds"] for one in found[row]) for row in rows}
    floor = best.get("copy", 0.0) + best.get("products", 0.0)
    lines = []
    for row in rows:
        peak = max(one["memory"] for one in found[row]) / 1e6
        share = f"{best[row] / floor:.2f}" if floor else "-"
        cpu = min(one["cpu"] for one in found[row])
        lines.append([row, f"{best[row]:.2f}", share, f"{cpu:.1f}", f"{peak:.0f}"])
    size = sum(f.stat().st_size for f in given.base.glob("*.safetensors"))
    print(f"A model of {size / 1e9:.2f} GB, an adapter of rank {given.rank}. {machine()}.\n")
    print(table(["row", "s", "x (copy + products)", "CPU s", "added MB"], lines))


if __name__ == "__main__":
    main()
