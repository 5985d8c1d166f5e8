"""`clmerge fisher`: what it writes, from which rows and with which options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

from tests.commands.checkpoints import tensor_digest
from tests.commands.models import SIDECAR, run, said_by, stored, write_rows
from tests.commands.running import clmerge
from tests.commands.trees import snapshot
from tests.tiny_models import TEXTS

ROWS = ("--data", "rows.jsonl")
FULL = ("--store-dtype", "float32")
LAYER = "model.layers.0.mlp.up_proj.weight"


# What is written


def test_the_main_job_needs_no_option_and_repeats_to_the_byte(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fresh in ("one", "two"):
        (models / fresh).mkdir()
        for name in ("a", "b"):
            shutil.copytree(models / name, models / fresh / name)
        monkeypatch.chdir(models / fresh)
        for name in ("a", "b"):
            assert clmerge("fisher", name, "--data", "../rows.jsonl").code == 0
        assert clmerge("fisher-merge", "a", "b").code == 0
    one, two = (snapshot(models / fresh) for fresh in ("one", "two"))
    names = [path[len(str(models / "one")) :] for path in one]
    assert names == [path[len(str(models / "two")) :] for path in two]
    differing = [n for n, x, y in zip(names, one.values(), two.values(), strict=True) if x != y]
    assert set(differing) <= {"/merged/clmerge/manifest.json"}  # it holds seconds and memory
    for name in ("a", "b"):
        again = clmerge("fisher", name, "--data", "../rows.jsonl")
        assert (again.code, again.out) == (0, "")
        assert again.err == f"{name}/{SIDECAR} is up to date\n"
    assert clmerge("fisher-merge", "a", "b").err == "merged is up to date\n"

    from transformers import LlamaForCausalLM

    _, told = LlamaForCausalLM.from_pretrained("merged", output_loading_info=True)
    assert not any(told.values())


def test_only_the_sidecar_is_added_and_stdout_stays_empty(models: Path) -> None:
    before = snapshot(models)
    result = clmerge("fisher", "a", *ROWS)
    assert (result.code, result.out) == (0, "")
    after = snapshot(models)
    assert {path: after[path] for path in before} == before
    new = sorted(path[len(str(models)) + 1 :] for path in after.keys() - before.keys())
    assert new == ["a/clmerge", f"a/{SIDECAR}"]
    lines = result.err.splitlines()
    assert lines[-1].startswith(f"output: a/{SIDECAR} (")
    assert any(line.startswith("mc Fisher of 21 tensors from 8 rows, 67 tokens,") for line in lines)
    assert any(line.startswith("trace ") and "standard error" in line for line in lines)


@pytest.mark.parametrize("model", ["a", "tied", "gpt", "moe", "c"])
def test_every_tensor_of_the_file_is_in_the_sidecar_under_its_name(
    models: Path, model: str
) -> None:
    data = "labelled.csv" if model == "c" else "rows.jsonl"
    run("fisher", model, "--data", data)
    weights, fisher = load_file(f"{model}/model.safetensors"), stored(Path(model, SIDECAR))
    said = said_by(Path(model, SIDECAR))
    assert fisher.keys() | said["missing"].keys() == weights.keys()
    assert not fisher.keys() & said["missing"].keys()
    assert said["tensors"].keys() == fisher.keys()
    for name, tensor in fisher.items():
        assert tensor.shape == weights[name].shape
        assert tensor.dtype == torch.bfloat16
        assert float(tensor.min()) >= 0
        assert said["tensors"][name]["digest"] == tensor_digest(weights[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_statistics_are_those_of_the_stored_values(models: Path, dtype: str) -> None:
    run("fisher", "a", *ROWS, "--store-dtype", dtype)
    said = said_by(models / "a" / SIDECAR)["tensors"]
    for name, tensor in stored(models / "a" / SIDECAR).items():
        assert tensor.dtype == getattr(torch, dtype)
        wide = tensor.double()
        entry = said[name]
        assert entry["kind"] == "diagonal"
        assert entry["sum"] == pytest.approx(float(wide.sum()), rel=1e-12)
        assert entry["sum_squares"] == pytest.approx(float(wide.square().sum()), rel=1e-12)
        assert entry["max"] == float(wide.max())
        assert entry["count"] == wide.numel()
        assert entry["zero_share"] == pytest.approx(float((wide == 0).double().mean()))
        assert entry["standard_error"] > 0


def test_the_metadata_says_what_was_measured(models: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    run("fisher", "a", *ROWS, "--max-length", "9", "--seed", "3", "--draws", "2")
    said = said_by(models / "a" / SIDECAR)
    tokenizer = AutoTokenizer.from_pretrained("a")
    model = LlamaForCausalLM.from_pretrained("a").double()
    rows = [tokenizer(text)["input_ids"][:9] for text in TEXTS]
    tokens = sum(len(row) - 1 for row in rows)
    losses = [
        model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() * (len(row) - 1)
        for row in rows
    ]
    assert said["examples"] == len(TEXTS)
    assert said["tokens"] == tokens
    assert said["mean_nll"] == pytest.approx(sum(losses) / tokens, rel=1e-5)
    expected = {
        "format": "clmerge.fisher/1",
        "estimator": "mc",
        "draws": 2,
        "seed": 3,
        "max_length": 9,
        "unit": "per_example",
        "level": "sequence",
        "calibration": None,
        "compute_dtype": "float32",
    }
    assert {key: said[key] for key in expected} == expected
    lines = sorted(
        json.dumps([name, "F32", list(tensor.shape), tensor_digest(tensor)], separators=(",", ":"))
        for name, tensor in load_file("a/model.safetensors").items()
    )
    assert said["weights_digest"] == blake3("\n".join(lines).encode()).hexdigest()


def test_a_tied_head_is_stored_once_and_named(models: Path) -> None:
    run("fisher", "tied", *ROWS)
    said = said_by(models / "tied" / SIDECAR)
    assert said["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in stored(models / "tied" / SIDECAR)


# Options on rows


def test_samples_chooses_rows_by_content(models: Path) -> None:
    document = run("fisher", "a", *ROWS, "--samples", "3")
    assert document["examples"] == 3
    assert run("fisher", "a", *ROWS, "--samples", "9", "--force")["notes"] == [
        "only 8 different rows, 9 were asked for"
    ]


def test_max_length_cuts_rows_and_says_so(models: Path) -> None:
    document = run("fisher", "a", *ROWS, "--max-length", "4")
    assert document["tokens"] == 3 * 8
    assert any("8 rows were cut at 4 tokens" in note for note in document["notes"])


ROW_FILES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "named field": ("a", "x.jsonl", ("--text-field", "body")),
    "completion": ("a", "y.jsonl", ()),
    "chat": ("a", "z.jsonl", ()),
    "running text": ("a", "x.txt", ()),
    "named label": ("c", "l.jsonl", ("--text-field", "body", "--label-field", "mood")),
    "a directory": ("a", "folder", ()),
    "a glob": ("a", "folder/*.jsonl", ()),
}


@pytest.mark.parametrize("case", ROW_FILES)
def test_rows_come_in_every_documented_form(models: Path, case: str) -> None:
    write_rows(models / "x.jsonl", [{"body": "the cat sat", "text": 7}])
    write_rows(models / "y.jsonl", [{"prompt": "the cat ", "completion": "sat on"}])
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat sat"}]
    write_rows(models / "z.jsonl", [{"messages": chat}])
    (models / "x.txt").write_text("the cat sat on the mat .\n")
    write_rows(models / "l.jsonl", [{"body": "the cat sat", "mood": "neutral"}])
    (models / "folder").mkdir()
    write_rows(models / "folder" / "one.jsonl", [{"text": "the cat sat"}])
    model, data, more = ROW_FILES[case]
    assert run("fisher", model, "--data", data, *more)["examples"] == 1


def test_data_may_be_given_several_times(models: Path) -> None:
    write_rows(models / "more.jsonl", [{"text": "a green log"}])
    assert run("fisher", "a", *ROWS, "--data", "more.jsonl")["examples"] == 9


def test_a_prompt_carries_no_loss(models: Path) -> None:
    write_rows(models / "y.jsonl", [{"prompt": "the cat sat on ", "completion": "the mat"}])
    write_rows(models / "t.jsonl", [{"text": "the cat sat on the mat"}])
    parts = run("fisher", "a", "--data", "y.jsonl", "-o", "y.safetensors")["tokens"]
    whole = run("fisher", "a", "--data", "t.jsonl", "-o", "t.safetensors")["tokens"]
    assert whole == 5
    assert parts < whole


# Options on the result


def test_excluded_tensors_are_missing_with_that_reason(models: Path) -> None:
    document = run("fisher", "a", *ROWS, "--exclude", "*embed*", "--exclude", "lm_head.*")
    assert document["missing"] == {
        "model.embed_tokens.weight": "excluded",
        "lm_head.weight": "excluded",
    }
    run("fisher", "a", *ROWS, "--include", "*.layers.1.*", "-o", "i.safetensors")
    assert {name.split(".")[2] for name in stored(models / "i.safetensors")} == {"1"}


def test_an_excluded_expert_is_missing_with_that_reason(models: Path) -> None:
    """The model holds all experts in one parameter, the file in one tensor each."""
    experts = [n for n in load_file("moe/model.safetensors") if "experts.0.w1" in n]
    assert experts
    document = run("fisher", "moe", *ROWS, "--exclude", "*experts.0.w1*")
    assert document["missing"] == dict.fromkeys(experts, "excluded")


def test_a_sharded_sidecar_is_found_and_merges_like_a_whole_one(models: Path) -> None:
    for name in ("a", "b"):
        run("fisher", name, *ROWS)
    run("fisher-merge", "a", "b", "-o", "whole", "--no-report")
    for name in ("a", "b"):
        shutil.rmtree(models / name / "clmerge")
        document = run("fisher", name, *ROWS, "--shard-size", "3KB")
        shards = sorted(path.name for path in (models / name / "clmerge").glob("*.safetensors"))
        assert shards[0].startswith("fisher-00001-of-0000")
        assert len(shards) > 1
        assert document["state"] == "published"
        assert run("fisher", name, *ROWS)["state"] == "up to date"
    run("fisher-merge", "a", "b", "-o", "shards", "--no-report")
    one, two = (models / name / "model.safetensors" for name in ("whole", "shards"))
    assert one.read_bytes() == two.read_bytes()


def test_a_first_batch_tells_how_long_the_rest_will_take(models: Path) -> None:
    result = clmerge("fisher", "a", *ROWS, "--batch-size", "2")
    assert any(
        line.startswith("about ") and line.endswith("left for 6 rows, judged by the first batch")
        for line in result.err.splitlines()
    )
