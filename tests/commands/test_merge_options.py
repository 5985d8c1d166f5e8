"""Which tensors, which dtype, which files: what those options of a merge do to the output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.commands.checkpoints import CONFIG, SHAPES, checkpoint, weights
from tests.commands.running import clmerge, refused
from tests.commands.toys import EMBED, LAYER0, LAYER1, NORM, A, B, C, check, merged, run
from tests.commands.trees import snapshot

pytestmark = pytest.mark.usefixtures("three")

# Selection, dtype, files


def test_excluded_and_copied_tensors_come_from_the_first_input(place: Path) -> None:
    run("linear-merge", "a", "b", "--exclude", "*norm*", "--copy", "model.layers.1.*")
    found = merged()
    assert torch.equal(found[NORM], A[NORM])
    assert torch.equal(found[LAYER1], A[LAYER1])
    assert not torch.equal(found[LAYER0], A[LAYER0])
    made = json.loads(Path("merged/clmerge/manifest.json").read_text())
    actions = {name: tensor["action"] for name, tensor in made["tensors"].items()}
    assert actions == {EMBED: "merged", LAYER0: "merged", LAYER1: "copied", NORM: "copied"}


def test_include_merges_nothing_else(place: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--include", "*layers*", "--exclude", "*.0.*")
    assert "note: 3 tensors are copied from a, as selected" in result.err
    found = merged()
    assert [n for n in SHAPES if not torch.equal(found[n], A[n])] == [LAYER1]


def test_tensors_of_different_dtypes_are_promoted(place: Path) -> None:
    checkpoint(place / "half", weights(4, torch.float16))
    checkpoint(place / "brain", weights(5, torch.bfloat16))
    run("linear-merge", "half", "brain")
    assert {tensor.dtype for tensor in merged().values()} == {torch.float32}
    run("linear-merge", "brain", "brain", "-o", "same")
    assert {t.dtype for t in merged("same/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("F32", torch.float32),
        ("float64", torch.float64),
    ],
)
def test_dtype_is_the_outputs_and_the_config_says_so(
    place: Path, given: str, dtype: torch.dtype
) -> None:
    (place / "a/config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float32"}))
    run("linear-merge", "a", "b", "--dtype", given)
    assert {tensor.dtype for tensor in merged().values()} == {dtype}
    said = json.loads(Path("merged/config.json").read_text())
    assert said == {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
    for name, tensor in merged().items():
        exact = (A[name].double() + B[name].double()) / 2
        least = max(torch.finfo(dtype).eps, 2**-23)  # float32 inputs are computed in float32
        assert float((tensor.double() - exact).abs().max()) < 2 * least


def test_shard_size_bounds_the_files(place: Path) -> None:
    run("linear-merge", "a", "b", "--shard-size", "1KB")
    files = sorted(Path("merged").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    held = [name for file in files for name in load_file(file)]
    assert sorted(held) == sorted(SHAPES)
    for file in files:
        with safe_open(file, "pt") as stored:
            assert stored.metadata() == {"format": "pt"}


def test_a_name_that_ends_in_safetensors_is_one_file_with_its_folder_beside_it(
    place: Path,
) -> None:
    before = set(snapshot(place))
    run("linear-merge", "a", "b", "-o", "one.safetensors", "--shard-size", "600")
    new = sorted(path[len(str(place)) + 1 :] for path in set(snapshot(place)) - before)
    assert new == [
        "one.clmerge",
        "one.clmerge/divergence.json",
        "one.clmerge/manifest.json",
        "one.clmerge/report.html",
        "one.safetensors",
    ]
    run("linear-merge", "one.safetensors", "c", "-o", "two.safetensors")
    check(merged("two.safetensors"), lambda n: (A[n].double() / 2 + B[n].double() / 2 + C[n]) / 2)


def test_companions_are_carried_byte_for_byte_and_the_inputs_own_folder_is_not(
    place: Path,
) -> None:
    texts = {
        "tokenizer.json": "{}",
        "generation_config.json": '{"a":  1}',
        "chat_template.jinja": "{{ x }}",
        "vocab.txt": "one\n",
        "LICENSE": "free",
        "modeling_own.py": "x = 1\n",
    }
    for name, text in texts.items():
        (place / "a" / name).write_text(text)
    (place / "a" / "optimizer.pt").write_text("not for a merge")
    (place / "b" / "b_only.json").write_text("{}")
    run("linear-merge", "a", "b")
    there = {path.name for path in Path("merged").iterdir()}
    assert there == {*texts, "README.md", "config.json", "model.safetensors", "clmerge"}
    for name in [*texts, "config.json"]:
        assert (place / "merged" / name).read_bytes() == (place / "a" / name).read_bytes()
    assert not Path("merged/clmerge/fisher.safetensors").exists()


def test_without_a_report_there_are_no_verdict_and_no_divergence(place: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--no-report", "--json")
    assert result.document["verdict"] is None
    assert result.document["model"] is None
    assert not Path("merged/clmerge/divergence.json").exists()
    assert not Path("merged/clmerge/report.html").exists()
    assert json.loads(Path("merged/clmerge/manifest.json").read_text())["verdict"] is None


@pytest.mark.parametrize("option", ["--include", "--exclude", "--copy"])
def test_a_pattern_that_matches_nothing_is_refused_and_names_the_nearest(
    place: Path, option: str
) -> None:
    says = ("a pattern matches no tensor", "'model.nrom.weight'", "model.norm.weight")
    line = ("linear-merge", "a", "b", option, "model.nrom.weight")
    refused(*line, unchanged=place, says=says, code=2)
