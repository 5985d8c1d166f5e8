"""Commands whose interruption is tested, and what must hold of their place at every moment."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from forked import Forks
from making import CONFIG, fisher_like, model_tensors, write_model, write_sidecar
from safetensors.torch import save_file
from tiny_models import TEXTS, tiny_llama

Files = dict[str, bytes]
SHARDS = ("--shard-size", "900")  # several files, some of several tensors


@dataclass(frozen=True)
class Scenario:
    """A command line given in folder `cwd` of a prepared place, and the output it makes there.

    prepare: command lines given before, in the same folder. steps: whether publishing takes several
    steps, so that a reader may see files of two outputs until the next command. exchange: whether
    the file system can swap two folders. imports: what a process has before it is forked.
    """

    name: str
    line: tuple[str, ...]
    output: tuple[str, ...] = ("merged",)
    prepare: tuple[tuple[str, ...], ...] = ()
    cwd: str = "."
    steps: bool = False
    exchange: bool = True
    imports: tuple[str, ...] = ()

    @property
    def builds(self) -> bool:
        """Whether it takes a model that transformers can build."""
        return self.line[0] in ("fisher", "ema-average")


OLD = ("linear-merge", "a", "b", "--weights", "1,3", "-o")
LINEAR = ("linear-merge", "a", "b", *SHARDS, "-o")
EMA = ("ema-merge", "state", "b", "--decay", "0.9", *SHARDS)
STATE = ("ema-merge", "a", "b", "--decay", "0.9", "--shard-size", "600", "-o", "state")
SINGLE = ("x.safetensors", "x.clmerge")
ESTIMATING = (
    "mergekit_cl.commands.fisher",
    "mergekit_cl.estimating.adam",
    "mergekit_cl.estimating.planning",
    "mergekit_cl.estimating.run",
    "mergekit_cl.report.fisher",
    "mergekit_cl.report.fisher_plan",
    "mergekit_cl.training.choose",
    "mergekit_cl.training.data",
    "mergekit_cl.training.encode",
    "mergekit_cl.training.fused",
    "mergekit_cl.training.load",
    "mergekit_cl.training.model",
    "mergekit_cl.training.passages",
    "fisher.accumulator",
    "fisher.distributed",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.encoder_decoder",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
)
MERGING_ADAPTERS = (
    "mergekit_cl.commands.lora_extract",
    "mergekit_cl.commands.lora_merge",
    "mergekit_cl.commands.lora_unmerge",
    "mergekit_cl.lora.extracting",
    "mergekit_cl.methods.lora",
    "mergekit_cl.methods.lora_unmerge",
    "mergekit_cl.report.extract",
)
AVERAGING = (
    *ESTIMATING,
    "accelerate",
    "mergekit_cl.commands.ema_average",
    "mergekit_cl.commands.train",
    "mergekit_cl.report.average",
    "mergekit_cl.tuning.averaging",
    "mergekit_cl.tuning.run",
)
TRAINING = """\
model = "model"
fisher = false
task = [{name = "rows", data = ["rows.jsonl"], steps = 6}]
batch = {rows = 4}
ema = {snapshot_every = 2}
"""
AVERAGE = ("ema-average", "run", *SHARDS, "--half-life")
ADAPTED = ("lora-merge", "a", "adapter")
SCENARIOS = (
    Scenario("a new folder", (*LINEAR, "new/deep/out"), ("new/deep/out",)),
    Scenario(
        "over an output",
        ("fisher-merge", "a", "b", *SHARDS, "--force"),
        prepare=((*OLD, "merged"),),
    ),
    Scenario(
        "over an output, in two renames",
        (*LINEAR, "merged", "--force", "--carry"),
        prepare=((*OLD, "merged"),),
        exchange=False,
    ),
    Scenario("with residuals", (*EMA, "-o", "next"), ("next",), (STATE,)),
    Scenario("in place", (*EMA, "--in-place"), ("state",), (STATE,)),
    Scenario("one file", ("linear-merge", "a", "b", "-o", "x.safetensors"), SINGLE, steps=True),
    Scenario(
        "over one file",
        ("linear-merge", "a", "b", "-o", "x.safetensors", "--force", "--carry"),
        SINGLE,
        ((*OLD, "x.safetensors"),),
        steps=True,
    ),
    Scenario(
        "one file in place",
        ("ema-merge", "x.safetensors", "b", "--decay", "0.9", "--in-place"),
        SINGLE,
        (("ema-merge", "a", "b", "--decay", "0.9", "-o", "x.safetensors"),),
        steps=True,
    ),
    Scenario(
        "the working folder",
        ("linear-merge", "../a", "../b", *SHARDS, "-o", ".", "--force"),
        ("merged",),
        (("linear-merge", "../a", "../b", "--weights", "1,3", "-o", "."),),
        cwd="merged",
        steps=True,
    ),
    Scenario(
        "a Fisher sidecar",
        ("fisher", "model", "--data", "rows.jsonl", "--batch-size", "2", "--force"),
        ("model/clmerge",),
        (("fisher", "model", "--data", "rows.jsonl", "--batch-size", "2", "--seed", "7"),),
        imports=ESTIMATING,
    ),
    Scenario(
        "adapted, with the bits to undo it",
        (*ADAPTED, *SHARDS, "--undo", "xor", "--carry"),
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "adapted, over one file",
        (*ADAPTED, "--undo", "xor", "-o", "x.safetensors", "--force"),
        SINGLE,
        ((*OLD, "x.safetensors"),),
        steps=True,
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "back by the base",
        ("lora-unmerge", "merged", "--base", "a", *SHARDS, "-o", "back"),
        ("back",),
        (ADAPTED,),
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "back by bits",
        ("lora-unmerge", "merged", *SHARDS, "-o", "back"),
        ("back",),
        ((*ADAPTED, "--undo", "xor", "--dtype", "float32"),),
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "an adapter",
        ("lora-extract", "b", "a", "--rank", "3", "--embeddings", "--save-rest", "-o", "low"),
        ("low",),
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "over an adapter",
        ("lora-extract", "b", "a", "--rank", "3", "-o", "low", "--force"),
        ("low",),
        (("lora-extract", "b", "a", "--rank", "2", "-o", "low"),),
        imports=MERGING_ADAPTERS,
    ),
    Scenario(
        "over an average",
        (*AVERAGE, "0.5", "--force"),
        ("averaged",),
        (("train", "train.toml"), (*AVERAGE, "0.4")),
        imports=AVERAGING,
    ),
)


def files(place: Path, origin: Path | None = None) -> Files:
    """Every file below, manifests without what a run cost and without the place itself.

    origin: the place that this one is a copy of, which its manifests may name.
    """
    names = [str(one).encode() for one in (place, origin) if one is not None]
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for one in names:
                content = content.replace(one, b"PLACE")
            name = str(path.relative_to(place))
            if path.name == "manifest.json" and not is_work(name):
                made = json.loads(content)
                del made["seconds"], made["peak_memory_bytes"]
                content = json.dumps(made, sort_keys=True).encode()
            found[name] = content
    return found


def is_work(name: str) -> bool:
    """Whether a file is of the temporary place, or of an output that stands aside."""
    return any(part.endswith((".partial", ".replaced")) for part in Path(name).parts[:-1])


@dataclass(frozen=True)
class Expected:
    """The prepared place with its files, and those after the command that nothing disturbed."""

    scenario: Scenario
    place: Path
    before: Files
    after: Files

    def copy(self, to: Path) -> Path:
        """A fresh place to disturb; times are kept, so that the state is the same."""
        shutil.copytree(self.place, to, symlinks=True)
        return to

    def check_readable(self, place: Path) -> bool:
        """Assert that a reader finds the old output whole or the new one; whether it is the new.

        Where publishing takes several steps there may be files of both, each whole, while the
        temporary place says so.
        """
        seen = {
            name: content for name, content in files(place, self.place).items() if not is_work(name)
        }
        if seen in (self.before, self.after):
            return seen == self.after
        aside = [place.joinpath(f".{Path(name).name}.replaced") for name in self.scenario.output]
        publishing = any(place.rglob(".*.partial/publishing.json"))
        assert publishing, f"neither output is whole: {_differences(seen, self.before, self.after)}"
        if self.scenario.exchange and not self.scenario.steps:
            raise AssertionError("a folder is exchanged in one step")
        if not self.scenario.steps:
            assert aside[0].is_dir()
            return False
        for name, content in seen.items():
            assert content in (self.before.get(name), self.after.get(name)), name
        return False

    def leftovers(self, place: Path) -> list[Path]:
        """What no reader sees and nobody needs after the end."""
        return [path for path in place.rglob(".*") if is_work(str(path / "x"))]


def prepared(scenario: Scenario, folder: Path, forks: Forks) -> Expected:
    """The place of a scenario in a folder, and what its command makes of it undisturbed."""
    place = folder / "place"
    place.mkdir()
    forks.load(scenario.imports)
    _prepare(place, scenario, forks)
    whole = shutil.copytree(place, folder / "whole")
    ended = forks.run(whole / scenario.cwd, (*scenario.line, "--threads", "1"))
    assert ended.status == 0, ended.err
    for one in (place, whole):
        if (one / scenario.output[0]).exists() and not scenario.builds:
            verified = forks.run(one, ("verify", scenario.output[0]))
            assert verified.status == 0, verified.err
    after = files(whole, place)
    shutil.rmtree(whole)
    return Expected(scenario, place, files(place), after)


def write_adapter(folder: Path) -> None:
    """An adapter of the two square layers, which also brings a norm of its own."""
    random = torch.Generator().manual_seed(9)
    tensors = {"base_model.model.model.layers.0.norm.weight": torch.ones(16)}
    for layer in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"):
        for side, shape in (("A", (2, 16)), ("B", (24, 2))):
            factor = torch.randn(shape, generator=random) * 0.1
            tensors[f"base_model.model.{layer}.lora_{side}.weight"] = factor
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _prepare(place: Path, scenario: Scenario, forks: Forks) -> None:
    """Fill an empty folder with what the command needs: inputs a and b, an adapter of a, and what
    comes before."""
    if scenario.builds:
        tiny_llama(place / "model", layers=1)
        (place / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
        (place / "train.toml").write_text(TRAINING)
    for k, name in enumerate("" if scenario.builds else "ab"):
        model = write_model(place / name, model_tensors(k), CONFIG)
        (model / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
        write_sidecar(model, fisher_like(model_tensors(k), k))
    if not scenario.builds:
        write_adapter(place / "adapter")
    where = place / scenario.cwd
    where.mkdir(exist_ok=True)
    for line in scenario.prepare:
        ended = forks.run(where, line)
        assert ended.status == 0, ended.err


def _differences(found: Files, before: Files, after: Files) -> dict[str, str]:
    return {
        name: "old" if found.get(name) == before.get(name) else "neither"
        for name in sorted({*found, *before, *after})
        if found.get(name) != after.get(name)
    }
