"""Whole commands, start-up included: clmerge beside mergekit, sd-mecha and what people write.

    python benchmarks/merge_commands.py --work DIR --mergekit VENV --sd-mecha VENV [--runs 3]

The same linear merge of two bf16 models without sidecars, inputs warm in the page cache; the
smallest of `--runs` counts. clmerge forces what it wrote to the disk, the others do not: "of it
fsync" is how long clmerge waited inside `fsync`, "then sync" what forcing everything to the disk
takes after a command has ended. So there are two ratios to the first row: without any of that
(seconds less fsync), and with all of it (seconds and sync). Memory is the peak of anonymous memory
of the command and its children. sd-mecha takes single files only and is given them. Peers live in
virtual environments of their own:

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

from benchmarks.measuring import Cost, lacks_room, machine, run_command, table, touch

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
OURS = "clmerge linear-merge --no-report"
HEADS = ["command", "seconds", "of it fsync", "then sync", "times ours, fsync apart"]
HEADS += ["times ours, all synced", "memory MB"]
WAITED = "seconds-in-fsync"
BEST = ["--out-shard-size", "100M", "--async-write", "--write-threads", "2"]
WATCHED = """
import atexit, os, sys, time
real, waited = os.fsync, [0.0]
def fsync(descriptor):
    began = time.perf_counter()
    real(descriptor)
    waited[0] += time.perf_counter() - began
os.fsync = fsync
atexit.register(lambda: open(sys.argv[1], "w").write(str(waited[0])))
from mergekit_cl.cli import main
main(sys.argv[2:])
"""
CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, '
    '"intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, '
    '"num_hidden_layers": %d, "vocab_size": 32000, "torch_dtype": "bfloat16", '
    '"tie_word_embeddings": false}'
)


def plain(work: Path, name: str, layers: int, seed: int) -> Path:
    """A model with its config and nothing beside it, of the weights that other benchmarks use."""
    from benchmarks.synthetic import write_model

    write_model(work / name, layers, seed)
    folder = work / "plain" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (work / name).glob("model*"):
        if not (folder / file.name).exists():
            (folder / file.name).hardlink_to(file)
    (folder / "config.json").write_text(CONFIG % layers)
    return folder


def commands(
    work: Path, models: list[Path], out: Path, mergekit: Path | None, mecha: Path | None
) -> dict[str, list[str]]:
    """{row: command}; all merge the same two models into `out`."""
    a, b = map(str, models)
    merge = ["linear-merge", a, b, "-o", str(out), "--quiet"]
    ours = [sys.executable, "-c", WATCHED, str(work / WAITED), *merge]
    found = {
        OURS: [*ours, "--no-report"],
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


def single_files(work: Path, models: list[Path]) -> None:
    """Each model as one file: a merge with itself is itself."""
    for model in models:
        target = work / f"{model.name}.safetensors"
        if not target.exists():
            merge = [
                "linear-merge",
                str(model),
                str(model),
                "-o",
                str(target),
                "--quiet",
                "--no-report",
            ]
            run_command([sys.executable, "-m", "mergekit_cl", *merge])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit", type=Path)
    parser.add_argument("--sd-mecha", type=Path)
    given = parser.parse_args()
    work, out = given.work.resolve(), given.work.resolve() / "out"
    # Two models, each as one file too, and an output.
    if (reason := lacks_room(work, 5 * (given.layers * 10**8 + 3 * 10**8))) is not None:
        raise SystemExit(reason)
    models = [plain(work, name, given.layers, seed) for name, seed in (("a", 1), ("b", 2))]
    if given.sd_mecha is not None:
        single_files(work, models)
    rows = commands(work, models, out, given.mergekit, given.sd_mecha)
    costs: dict[str, list[tuple[Cost, float]]] = {row: [] for row in rows}
    environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    waited = work / WAITED
    for _ in range(given.runs):
        for row, command in rows.items():
            shutil.rmtree(out, ignore_errors=True)
            for file in (Path(f"{out}.safetensors"), waited):
                file.unlink(missing_ok=True)
            touch(file for model in models for file in sorted(model.glob("*.safetensors")))
            cost = run_command(command, environment)
            costs[row].append((cost, float(waited.read_text()) if waited.exists() else 0.0))
    shutil.rmtree(out, ignore_errors=True)
    Path(f"{out}.safetensors").unlink(missing_ok=True)
    apart = {row: min(c.seconds - in_fsync for c, in_fsync in one) for row, one in costs.items()}
    whole = {row: min(c.seconds + c.sync for c, _ in found) for row, found in costs.items()}
    lines = []
    for row, found in costs.items():
        best, in_fsync = min(found, key=lambda one: one[0].seconds + one[0].sync)
        lines.append(
            [
                row,
                f"{best.seconds:.1f}",
                f"{in_fsync:.1f}",
                f"{best.sync:.1f}",
                f"{apart[row] / apart[OURS]:.1f}",
                f"{whole[row] / whole[OURS]:.1f}",
                f"{max(cost.memory for cost, _ in found) / 1e6:.0f}",
            ]
        )
    size = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))
    print(f"Two bf16 models of {size / 1e9:.2f} GB. {machine()}.\n")
    print(table(HEADS, lines))


if __name__ == "__main__":
    main()
