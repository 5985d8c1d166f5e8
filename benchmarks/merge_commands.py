"""Whole commands, start-up included: clmerge beside mergekit, sd-mecha and what people write.

    python benchmarks/merge_commands.py --work DIR --mergekit VENV --sd-mecha VENV [--runs 3]

The same linear merge of two bf16 models, inputs warm in the page cache; the smallest of `--runs`
counts. `sync` is what forcing everything to the disk takes after the command has ended: clmerge has
done so itself. Memory is the peak of anonymous memory of the command and its children. sd-mecha
takes single files only and is given them. With Fisher sidecars beside the models the second row
would read those too: use a folder of its own. Peers live in virtual environments of their own:

    python -m venv VENV && VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install mergekit==0.1.5      (or sd-mecha==1.1.8)

A peer without a VENV is left out.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Cost, machine, run_command, table, touch

LOAD_ALL = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
def state(folder):
    files = sorted(Path(folder).glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}
a, b = state(sys.argv[1]), state(sys.argv[2])
merged = {key: (a[key].float() * 0.5 + b[key].float() * 0.5).bfloat16() for key in a}
Path(sys.argv[3]).mkdir()
save_file(merged, sys.argv[3] + "/model.safetensors")
"""
SD_MECHA = """
import sys, torch, sd_mecha
from pathlib import Path
a, b, out = map(Path, sys.argv[1:4])
recipe = sd_mecha.weighted_sum(sd_mecha.model(a), sd_mecha.model(b), alpha=0.5)
dtypes = {"merge_dtype": torch.float32, "output_dtype": torch.bfloat16}
sd_mecha.merge(recipe, output=out, threads=2, **dtypes)
"""
MERGEKIT = """
merge_method: linear
dtype: bfloat16
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.5}}}}
"""
BEST = ["--out-shard-size", "100M", "--async-write", "--write-threads", "2"]
CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, '
    '"intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, '
    '"num_hidden_layers": %d, "vocab_size": 32000, "torch_dtype": "bfloat16", '
    '"tie_word_embeddings": false}'
)


def commands(work: Path, out: Path, mergekit: Path | None, mecha: Path | None) -> dict[str, list]:
    """{row: command}; all merge the same two models into `out`."""
    a, b = str(work / "a"), str(work / "b")
    ours = [sys.executable, "-m", "mergekit_cl", "linear-merge", a, b, "-o", str(out), "--quiet"]
    found = {
        "clmerge linear-merge --no-report": [*ours, "--no-report"],
        "clmerge linear-merge": ours,
        "load everything": [sys.executable, "-c", LOAD_ALL, a, b, str(out)],
    }
    if mergekit is not None:
        recipe = work / "mergekit.yaml"
        recipe.write_text(MERGEKIT.format(a=a, b=b))
        theirs = [str(mergekit / "bin/mergekit-yaml"), str(recipe), str(out), "--quiet"]
        found["mergekit"] = theirs
        found["mergekit, its best options"] = [*theirs, *BEST]
    if mecha is not None:
        python = str(mecha / "bin/python")
        files = [str(work / f"{name}.safetensors") for name in "ab"]
        found["sd-mecha"] = [python, "-c", SD_MECHA, *files, f"{out}.safetensors"]
    return found


def single_files(work: Path) -> None:
    """Each model as one file: a merge with itself is itself."""
    for name in "ab":
        target = work / f"{name}.safetensors"
        if not target.exists():
            model = str(work / name)
            merge = ["linear-merge", model, model, "-o", str(target), "--quiet", "--no-report"]
            run_command([sys.executable, "-m", "mergekit_cl", *merge])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit", type=Path)
    parser.add_argument("--sd-mecha", type=Path)
    given = parser.parse_args()
    from benchmarks.synthetic import write_model

    work, out = given.work.resolve(), given.work.resolve() / "out"
    for name, seed in (("a", 1), ("b", 2)):
        write_model(work / name, given.layers, seed)
        (work / name / "config.json").write_text(CONFIG % given.layers)
    if given.sd_mecha is not None:
        single_files(work)
    rows = commands(work, out, given.mergekit, given.sd_mecha)
    costs: dict[str, list[Cost]] = {row: [] for row in rows}
    environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    for _ in range(given.runs):
        for row, command in rows.items():
            shutil.rmtree(out, ignore_errors=True)
            Path(f"{out}.safetensors").unlink(missing_ok=True)
            touch(file for name in "ab" for file in sorted(work.glob(f"{name}*/*.safetensors")))
            costs[row].append(run_command(command, environment))
    shutil.rmtree(out, ignore_errors=True)
    Path(f"{out}.safetensors").unlink(missing_ok=True)
    ours = min(cost.seconds + cost.sync for cost in costs["clmerge linear-merge --no-report"])
    lines = []
    for row, found in costs.items():
        best = min(found, key=lambda cost: cost.seconds + cost.sync)
        peak = max(cost.memory for cost in found)
        whole = best.seconds + best.sync
        lines.append(
            [
                row,
                f"{best.seconds:.1f}",
                f"{best.sync:.1f}",
                f"{whole / ours:.1f}",
                f"{peak / 1e6:.0f}",
            ]
        )
    size = sum(file.stat().st_size for file in (work / "a").glob("*.safetensors"))
    print(f"Two bf16 models of {size / 1e9:.2f} GB. {machine()}.\n")
    print(table(["command", "seconds", "then sync", "times ours", "memory MB"], lines))


if __name__ == "__main__":
    main()
