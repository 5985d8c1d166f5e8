"""Tied tensors: stored once by one tool, twice by another, merged as one; real models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import sidecar
from tests.commands.running import clmerge, refused
from tests.tiny_models import tiny_gpt2, tiny_llama

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def tiny_t5(path: Path, seed: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24}
    model = T5ForConditionalGeneration(T5Config(**sizes, num_layers=1, num_heads=4))
    model.save_pretrained(path)
    return model.eval()


def tiny_masked_bert(path: Path, seed: int) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(path)
    return model.eval()


def tied_llama(path: Path, seed: int) -> Any:
    return tiny_llama(path, tied=True, seed=seed)


def gpt2(path: Path, seed: int) -> Any:
    return tiny_gpt2(path, seed=seed)


MODELS: dict[str, tuple[Callable[[Path, int], Any], int]] = {
    "llama": (tied_llama, 1),
    "gpt2": (gpt2, 1),
    "t5": (tiny_t5, 3),
    "bert": (tiny_masked_bert, 2),
}


def with_every_name(path: Path, model: Any, target: Path) -> Path:
    """The model with each name of its state dict stored as a tensor of its own."""
    shutil.copytree(path, target)
    content = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(content, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inputs", [("a", "b-all"), ("a-all", "b"), ("a-all", "b-all")])
def test_a_tied_tensor_is_merged_and_stored_once(
    here: Path, name: str, inputs: tuple[str, str]
) -> None:
    make, names_more = MODELS[name]
    models = [make(here / folder, seed) for folder, seed in (("a", 1), ("b", 2))]
    for folder, model in zip("ab", models, strict=True):
        with_every_name(here / folder, model, here / f"{folder}-all")
    result = clmerge("linear-merge", *inputs, "--weights", "1,3")
    assert result.code == 0, result
    assert result.err.count("is tied to") == names_more
    stored = load_file(here / "merged/model.safetensors")
    assert stored.keys() == load_file(here / "a/model.safetensors").keys()
    merged, told = type(models[0]).from_pretrained("merged", output_loading_info=True)
    assert not any(told.values()), told
    first, second = (model.state_dict() for model in models)
    for key, tensor in merged.state_dict().items():
        exact = (first[key].double() + 3 * second[key].double()) / 4
        torch.testing.assert_close(tensor.double(), exact, rtol=3e-7, atol=1e-7)
    # Every input key is accounted for: the record knows the digest of the whole file.
    assert clmerge("verify", "merged").code == 0
    assert clmerge("linear-merge", *inputs, "--weights", "1,3").err.count("up to date") == 1


def test_the_fisher_of_a_tied_head_is_its_embeddings(here: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        model = tied_llama(here / folder, seed)
        with_every_name(here / folder, model, here / f"{folder}-all")
        sidecar(here / folder, seed)
        sidecar(here / f"{folder}-all", seed, leave_out={HEAD: "tied"})
    assert clmerge("fisher-merge", "a", "b", "-o", "once").code == 0
    assert clmerge("fisher-merge", "a-all", "b-all", "-o", "twice").code == 0
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("once", "twice")]
    assert files[0] == files[1]


@pytest.mark.parametrize("command", ["fisher-merge", "linear-merge"])
@pytest.mark.parametrize("head_alone", ["a", "b", "ab"])
def test_the_fisher_of_an_input_that_holds_only_its_head_is_found(
    here: Path, command: str, head_alone: str
) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        tied_llama(here / folder, seed)
        sidecar(here / folder, seed)
        by_head(here / folder, here / f"{folder}-head")
    inputs = [f"{name}-head" if name in head_alone else name for name in "ab"]
    assert clmerge(command, "a", "b", "--weights", "1,3", "-o", "usual").code == 0
    found = clmerge(command, *inputs, "--weights", "1,3", "-o", "found")
    assert found.code == 0, found
    usual, other = (load_file(here / name / "model.safetensors") for name in ("usual", "found"))
    stays = HEAD if "a" in head_alone else EMBEDDING
    usual[stays] = usual.pop(EMBEDDING)
    assert usual.keys() == other.keys()
    assert all(torch.equal(usual[name], other[name]) for name in usual)
    one, two = (
        json.loads((here / name / "clmerge/divergence.json").read_bytes())["model_by_parent"]
        for name in ("usual", "found")
    )
    assert [p["fisher_share"] for p in two] == [1.0, 1.0]
    for expected, parent in zip(one, two, strict=True):
        assert parent["predicted_kl"] == pytest.approx(expected["predicted_kl"], rel=1e-12)


def by_head(model: Path, target: Path) -> None:
    """The model and its sidecar with the tied tensor under the head's name."""
    shutil.copytree(model, target)
    for file in (target / "model.safetensors", target / "clmerge/fisher.safetensors"):
        stored = load_file(file)
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        stored[HEAD] = stored.pop(EMBEDDING)
        if "clmerge.fisher" in said:
            described = json.loads(said["clmerge.fisher"])
            described["tensors"][HEAD] = described["tensors"].pop(EMBEDDING)
            said["clmerge.fisher"] = json.dumps(described)
        save_file(stored, file, metadata=said)


def test_a_head_that_is_not_its_embedding_is_no_tied_one(here: Path) -> None:
    tied_llama(here / "a", 1)
    with_every_name(here / "a", tied_llama(here / "b", 2), here / "b-all")
    stored = load_file(here / "b-all/model.safetensors")
    stored[HEAD][0, 0] += 1
    save_file(stored, here / "b-all/model.safetensors", metadata={"format": "pt"})
    for inputs in (("a", "b-all"), ("b-all", "a"), ("b-all", "b-all")):
        says = ("tied tensor is stored twice", f"b-all: {HEAD} is not equal to {EMBEDDING}", "try:")
        refused("linear-merge", *inputs, unchanged=here, says=says)


def test_a_tied_and_an_untied_model_are_refused_with_what_to_do(here: Path) -> None:
    tied_llama(here / "a", 1)
    tiny_llama(here / "b", tied=False, seed=2)
    says = ("tie their heads differently", "tie_word_embeddings: true in a, false in b")
    refused("linear-merge", "a", "b", unchanged=here, says=(*says, "a head of its own"))
    untie(here / "a", here / "own")
    assert clmerge("linear-merge", "own", "b").code == 0


def untie(path: Path, target: Path) -> None:
    """What the message advises."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(path)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(target)
    assert HEAD in load_file(target / "model.safetensors")


def test_an_untied_head_that_is_missing_is_missing(here: Path) -> None:
    tiny_llama(here / "a", seed=1)
    tiny_llama(here / "b", seed=2)
    stored = load_file(here / "b/model.safetensors")
    del stored[HEAD]
    save_file(stored, here / "b/model.safetensors", metadata={"format": "pt"})
    for inputs in (("a", "b"), ("b", "a")):
        refused("linear-merge", *inputs, unchanged=here, says=(f"{HEAD}: not in b",))


def test_heads_of_their_own_are_merged_apart(here: Path) -> None:
    one, two = (tiny_llama(here / folder, seed=seed) for folder, seed in (("a", 1), ("b", 2)))
    assert clmerge("linear-merge", "a", "b").code == 0
    stored = load_file(here / "merged/model.safetensors")
    for name in (HEAD, EMBEDDING):
        exact = (one.state_dict()[name].double() + two.state_dict()[name].double()) / 2
        torch.testing.assert_close(stored[name].double(), exact, rtol=3e-7, atol=1e-7)
    assert not torch.equal(stored[HEAD], stored[EMBEDDING])


def test_a_config_that_is_silent_leaves_it_to_the_tensors(here: Path) -> None:
    # transformers 4 wrote tie_word_embeddings only where it was false.
    tied_llama(here / "a", 1)
    with_every_name(here / "a", tied_llama(here / "b", 2), here / "b-all")
    config = json.loads((here / "b-all/config.json").read_text())
    del config["tie_word_embeddings"]
    (here / "b-all/config.json").write_text(json.dumps(config))
    assert clmerge("linear-merge", "a", "b-all").code == 0
    assert HEAD not in load_file(here / "merged/model.safetensors")
