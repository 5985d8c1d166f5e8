"""What commands take on models that are small, where start-up is all of it.

    python benchmarks/small_commands.py --work DIR [--runs 5]

Whole commands on two bf16 models of 20 tensors, beside loading torch, which none of them needs; the
smallest of `--runs`, run in turn. Memory is the peak of anonymous memory.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Cost, machine, run_command, table

CLMERGE = [sys.executable, "-m", "mergekit_cl"]
COMMANDS = {
    "clmerge linear-merge A B": [*CLMERGE, "linear-merge", "{a}", "{b}", "-o", "{out}"],
    "clmerge ema-merge A B": [*CLMERGE, "ema-merge", "{a}", "{b}", "--decay", ".9", "-o", "{out}"],
    "clmerge diff A B": [*CLMERGE, "diff", "{a}", "{b}"],
    "clmerge verify MERGED": [*CLMERGE, "verify", "{merged}"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def write_models(work: Path) -> dict[str, str]:
    """Two models and their merge: {what a command line calls it: its path}."""
    import torch
    from safetensors.torch import save_file

    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"layers.{k}.weight": torch.randn(64, 64, generator=generator).bfloat16()
            for k in range(20)
        }
        (work / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, work / name / "model.safetensors")
    return {name: str(work / name) for name in ("a", "b", "merged", "out")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    paths = write_models(given.work)
    shutil.rmtree(paths["merged"], ignore_errors=True)
    first = [*CLMERGE, "linear-merge", paths["a"], paths["b"], "-o", paths["merged"]]
    run_command(first)
    found: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    for _ in range(given.runs):
        for name, line in COMMANDS.items():
            shutil.rmtree(paths["out"], ignore_errors=True)
            found[name].append(run_command([word.format(**paths) for word in line]))
    rows = []
    for name, costs in found.items():
        best = min(costs, key=lambda cost: cost.seconds)
        rows.append([name, f"{best.seconds:.2f}", f"{best.memory / 1e6:.0f}"])
    print(f"{machine()}.\n")
    print(table(["command", "seconds", "memory MB"], rows))


if __name__ == "__main__":
    main()
