"""Adapters that cannot be merged are refused by name, with the reason, before a byte is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mergekit_cl.errors import ClmergeError
from tests.commands.running import clmerge
from tests.lora.merging import merge

Q = "base_model.model.layers.0.q_proj"
SHAPES = {"layers.0.q_proj.weight": (6, 4), "layers.0.k_proj.weight": (6, 4), "norm.bias": (4,)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base of two layers and an adapter on one of them, both by hand."""
    base = tmp_path / "base"
    base.mkdir()
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    write(tmp_path / "adapter", {f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)})
    return tmp_path


def write(folder: Path, shapes: Mapping[str, tuple[int, ...]], **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))


def configure(folder: Path, **config: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def refused(place: Path) -> ClmergeError:
    with pytest.raises(ClmergeError) as told:
        merge(place / "base", [place / "adapter"], place / "out")
    assert sorted(path.name for path in place.iterdir()) == ["adapter", "base"]
    return told.value


def test_the_adapter_itself_is_merged(place: Path) -> None:
    merge(place / "base", [place / "adapter"], place / "out")
    before = load_file(place / "base" / "model.safetensors")["layers.0.q_proj.weight"].double()
    factors = load_file(place / "adapter" / "adapter_model.safetensors")
    product = factors[f"{Q}.lora_B.weight"].double() @ factors[f"{Q}.lora_A.weight"].double()
    found = load_file(place / "out" / "model.safetensors")["layers.0.q_proj.weight"]
    assert torch.equal(found, (before + 2.0 * product).float())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "only LoRA"),
        ({"peft_type": "ADALORA"}, "only LoRA"),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"peft_type": "TRAINABLE_TOKENS"}, "only LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "new"}, "initialised in a way"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"arrow_config": {"top_k": 1}}, "Arrow"),
        ({"use_qalora": True}, "QALoRA"),
        ({"layer_replication": [[0, 1]]}, "replicated"),
        ({"monteclora_config": {"num_samples": 2}}, "MonteCLoRA"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"something_new": True}, "does not understand"),
        ({"lora_B_layout": "sideways"}, "lora_B"),
        ({"rank_pattern": {"q_proj": 3}}, "another rank"),
        ({"alpha_pattern": {"q_proj": 3, "layers.0.q_proj": 4}}, "several entries"),
        ({"lora_alpha": None}, "no lora_alpha"),
        ({"lora_alpha": "four"}, "is none"),
        ({"use_dora": True}, "lacks a magnitude"),
        ({"bias": "all"}, "trained biases are missing"),
    ],
)
def test_a_config_that_cannot_be_merged_is_refused(
    place: Path, config: dict[str, Any], said: str
) -> None:
    configure(place / "adapter", **config)
    assert said in refused(place).message


def test_keys_that_only_inform_are_listed_and_not_refused(place: Path) -> None:
    configure(place / "adapter", lora_dropout=0.1, megatron_core="megatron.core")
    outcome = merge(place / "base", [place / "adapter"], place / "out")
    told = outcome.manifest["options"]["adapters"][0]["informative"]
    assert told == ["lora_dropout", "megatron_core"]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({f"{Q}.lora_A.weight": (2, 5), f"{Q}.lora_B.weight": (6, 2)}, "another shape"),
        ({f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 3)}, "another shape"),
        ({f"{Q}.lora_A.weight": (2,), f"{Q}.lora_B.weight": (6, 2)}, "another shape"),
        ({f"{Q}.lora_A.weight": (2, 4)}, "lacks a lora_B"),
        ({f"{Q}.lora_B.weight": (6, 2)}, "lacks a lora_A"),
        (
            {
                "base_model.model.layers.0.v_proj.lora_A.weight": (2, 4),
                "base_model.model.layers.0.v_proj.lora_B.weight": (6, 2),
            },
            "fit nothing",
        ),
        ({"base_model.model.layers.0.odd": (3,)}, "fits nothing"),
        ({"base_model.model.norm.bias": (5,)}, "another shape"),
        ({f"{Q}.lora_A.a.weight": (2, 4), f"{Q}.lora_B.b.weight": (6, 2)}, "several adapters"),
        (
            {
                f"{Q}.lora_A.weight": (2, 4),
                f"{Q}.lora_B.weight": (6, 2),
                f"{Q}.lora_B.bias": (6,),
            },
            "does not have",
        ),
        (
            {
                f"{Q}.lora_A.weight": (2, 4),
                f"{Q}.lora_B.weight": (6, 2),
                f"{Q}.lora_magnitude_vector": (4,),
            },
            "another length",
        ),
        ({"base_model.model.norm.token_adapter.trainable_tokens_delta": (1, 4)}, "fits nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    place: Path, shapes: dict[str, tuple[int, ...]], said: str
) -> None:
    write(place / "adapter", shapes)
    assert said in refused(place).message


def test_a_key_that_fits_nothing_is_told_with_the_nearest_names(place: Path) -> None:
    odd = "base_model.model.layers.0.qq_proj"
    write(place / "adapter", {f"{odd}.lora_A.weight": (2, 4), f"{odd}.lora_B.weight": (6, 2)})
    detail = str(refused(place).detail)
    assert "nearest are layers.0.q_proj.weight, layers.0.k_proj.weight" in detail


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _poison(file: Path) -> None:
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "input"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "format"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "format"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "input"),
        (lambda folder: _truncate(folder / "adapter_model.safetensors"), "format"),
        (lambda folder: _poison(folder / "adapter_model.safetensors"), "nonfinite"),
    ],
)
def test_broken_files_are_one_clear_error_and_nothing_is_left(
    place: Path, harm: Callable[[Path], object], code: str
) -> None:
    harm(place / "adapter")
    result = clmerge("lora-merge", place / "base", place / "adapter", "-o", place / "out", "--json")
    assert (result.code, result.error["code"]) == (1, code)
    assert sorted(path.name for path in place.iterdir()) == ["adapter", "base"]


def test_an_adapter_of_another_base_needs_the_word(place: Path) -> None:
    side = place / "adapter" / "clmerge"
    side.mkdir()
    made = {"format": "clmerge.manifest/1", "command": "lora-extract", "options": {}}
    source = {"role": "base", "weights_digest": "0" * 64}
    made |= {"inputs": [source], "outputs": [], "tensors": {}}
    (side / "manifest.json").write_text(json.dumps(made))
    assert "another base" in refused(place).message
    result = clmerge(
        "lora-merge", place / "base", place / "adapter", "-o", place / "out", "--allow-other-base"
    )
    assert result.code == 0


def test_another_name_of_the_base_is_only_noted(place: Path) -> None:
    configure(place / "adapter", base_model_name_or_path="org/other-model")
    outcome = merge(place / "base", [place / "adapter"], place / "out")
    assert any("org/other-model" in note for note in outcome.notes)


def test_an_adapter_of_the_hub_is_merged_and_one_of_a_bucket_has_to_be_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    store, commit = place / "hub" / "models--org--low", "a" * 40
    shutil.copytree(place / "adapter", store / "snapshots" / commit)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(commit)
    for name, adapter in (("here", place / "adapter"), ("there", "hf://org/low")):
        result = clmerge("lora-merge", place / "base", adapter, "-o", place / name)
        assert result.code == 0, result.err
    one, other = (load_file(place / name / "model.safetensors") for name in ("here", "there"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    result = clmerge("lora-merge", place / "base", "s3://bucket/low", "-o", place / "away")
    assert result.code == 1
    assert "copy its folder here" in result.err


def test_quantised_bases_are_refused(place: Path) -> None:
    said = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (place / "base" / "config.json").write_text(json.dumps(said))
    assert "quantised" in refused(place).message


def test_bases_of_eight_bits_are_refused(place: Path) -> None:
    file = place / "base" / "model.safetensors"
    tensors = load_file(file)
    name = "layers.0.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file, {"format": "pt"})
    assert name in str(refused(place).detail)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--scale", "1,2"), 2, "1 adapters need 1 scales"),
        (("--vocab", "base"), 2, "vocabulary"),
        (("--include", "nothing*"), 2, "matches no tensor"),
    ],
)
def test_options_that_contradict_are_usage_errors(
    place: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    result = clmerge("lora-merge", place / "base", place / "adapter", "-o", place / "o", *options)
    assert result.code == code
    assert said in result.err


def test_one_adapter_may_not_replace_what_another_changes(place: Path) -> None:
    write(place / "other", {"base_model.model.layers.0.q_proj.weight": (6, 4)})
    both = [place / "adapter", place / "other"]
    with pytest.raises(ClmergeError, match="replaces a tensor that another one changes"):
        merge(place / "base", both, place / "out")
