"""`clmerge gate` on tiny real models: against transformers, offline, over several looks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.decide.gate import compare
from mergekit_cl.decide.pairing import Rows
from mergekit_cl.training.quiet import quiet_peft
from tests.commands.models import write_rows
from tests.commands.running import clmerge, refused
from tests.commands.trees import snapshot
from tests.tiny_models import WORDS, tiny_llama, tiny_tokenizer

ROWS = 40
FEW = ("--min-rows", "20")


def texts(seed: int, count: int = ROWS) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


@pytest.fixture
def here(models: Path) -> Path:
    """Models a and b, `near` a copy of a with a little noise; rows in val.jsonl and code.jsonl."""
    variant(models, "near", 0.002)
    for seed, name in enumerate(("val", "code")):
        write_rows(models / f"{name}.jsonl", ({"text": text} for text in texts(seed)))
    return models


def variant(place: Path, name: str, size: float) -> None:
    shutil.copytree(place / "a", place / name)
    generator = torch.Generator().manual_seed(0)
    moved = {
        key: weight + size * torch.randn(weight.shape, generator=generator)
        for key, weight in load_file(place / "a/model.safetensors").items()
    }
    save_file(moved, place / name / "model.safetensors", metadata={"format": "pt"})


def gate(*line: str | Path, code: int = 0) -> Any:
    """The document of a gate that must end with `code`."""
    result = clmerge("gate", *line, "--json")
    assert result.code == code, result
    return result.document


def by_transformers(model: Path, rows: list[str], adapter: Path | None = None) -> Rows:
    """The losses of a model, row by row in float64."""
    from peft import PeftModel
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    net: Any = LlamaForCausalLM.from_pretrained(model)
    if adapter is not None:
        with quiet_peft():
            net = PeftModel.from_pretrained(net, str(adapter))
    net = net.double().eval()
    nats, tokens = [], []
    with torch.no_grad():
        for text in rows:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            log_p = net(input_ids=ids).logits.log_softmax(-1)
            nats.append(-float(log_p[0, :-1].gather(1, ids[0, 1:, None]).sum()))
            tokens.append(ids.shape[1] - 1)
    return Rows(tuple(rows), np.array(nats), np.array(tokens))


def test_delta_is_that_of_transformers_and_near_models_are_accepted(here: Path) -> None:
    found = gate("near", "a", "--data", "val.jsonl", *FEW)
    (one,) = found["comparisons"]
    rows = sorted(set(texts(0)))
    expected = compare(
        by_transformers(here / "near", rows), by_transformers(here / "a", rows), min_rows=20
    )
    assert one["delta"] == pytest.approx(expected.delta, abs=1e-6)
    assert one["loss"]["candidate"] == pytest.approx(expected.new_loss, abs=1e-5)
    assert one["tokens"] == expected.tokens
    assert one["standard_error"] == pytest.approx(expected.standard_error, rel=1e-2)
    assert (found["decision"], one["decision"], one["suite"]) == ("accept", "accept", "val")
    assert found["look"] is None
    assert set(found["digests"]) == {"candidate", "reference", "data"}


def test_the_exit_code_is_the_decision(here: Path) -> None:
    line = ("--data", "val.jsonl", *FEW)
    assert gate("near", "a", *line)["decision"] == "accept"
    variant(here, "broken", 2.0)
    assert gate("broken", "a", *line, code=10)["decision"] == "reject"
    few = gate("near", "a", "--data", "val.jsonl", code=11)
    assert few["decision"] == "inconclusive"
    assert few["comparisons"][0]["rows_needed"] == 500


def test_people_are_told_why_and_what_to_do(here: Path) -> None:
    told = clmerge("gate", "near", "a", "--data", "val.jsonl").out
    assert "val against reference: 40 rows decide nothing, 500 are needed" in told
    assert "try: give val 500 rows" in told
    told = clmerge("gate", "near", "a", "--data", "val.jsonl", *FEW).out
    assert "decision: accept" in told
    assert "nats per token worse (margin 0.02)" in told
    told = clmerge("gate", "near", "a", "--data", "val.jsonl", *FEW, "--margin", "0.003").out
    assert "equally good one would be accepted with" in told
    variant(here, "broken", 2.0)
    told = clmerge("gate", "broken", "a", "--data", "val.jsonl", *FEW).out
    assert "nats per token or more (margin 0.02)" in told
    assert "try: keep what is in use" in told


def test_every_suite_must_accept_against_the_anchor_too(here: Path) -> None:
    variant(here, "broken", 2.0)
    line = ("--data", "val.jsonl", "--data", "mine=code.jsonl", *FEW)
    found = gate("near", "near", *line, "--anchor", "a")
    assert [(one["suite"], one["against"]) for one in found["comparisons"]] == [
        ("val", "reference"),
        ("val", "anchor"),
        ("mine", "reference"),
        ("mine", "anchor"),
    ]
    assert found["notes"] == [
        "the candidate and the reference are the same model: this accepts whatever it is"
    ]
    variant(here, "good", 0.0)
    drifted = gate("broken", "broken", *line, "--anchor", "good", code=10)
    decisions = [one["decision"] for one in drifted["comparisons"]]
    assert decisions == ["accept", "reject"] * 2


def test_stored_losses_decide_again_without_models(here: Path) -> None:
    line = ("near", "a", "--data", "val.jsonl", "--anchor", "near", *FEW)
    first = gate(*line, "--write-rows", "losses.jsonl", "-o", "verdict.json")
    assert json.loads((here / "verdict.json").read_text()) == first
    for name in ("a", "near"):
        shutil.rmtree(here / name)
    again = gate("--rows", "losses.jsonl", *FEW)
    for document in (first, again):
        del document["seconds"]
    assert again == first
    strict = gate("--rows", "losses.jsonl", *FEW, "--margin", "1e-5", code=10)
    assert strict["comparisons"][0]["interval"] == first["comparisons"][0]["interval"]


# Adapters


@pytest.fixture
def weeks(here: Path) -> Path:
    """LoRA adapters week-1 and week-2 of a."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    for seed in (1, 2):
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with quiet_peft():
            net = get_peft_model(LlamaForCausalLM.from_pretrained(here / "a"), config)
        torch.manual_seed(seed)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        net.save_pretrained(str(here / f"week-{seed}"))
    return here


def test_adapters_are_models_on_their_base(weeks: Path) -> None:
    line = ("--data", "val.jsonl", "--margin", "0.5", *FEW)
    found = gate("week-2", "week-1", "--base", "a", "--anchor", "a", *line)
    rows = sorted(set(texts(0)))
    losses = [
        by_transformers(weeks / "a", rows, adapter)
        for adapter in (weeks / "week-2", weeks / "week-1", None)
    ]
    for one, old in zip(found["comparisons"], losses[1:], strict=True):
        assert one["delta"] == pytest.approx(compare(losses[0], old).delta, abs=1e-6)
        assert abs(one["delta"]) > 1e-5
    assert len(set(map(str, found["digests"].values()))) == 4
    named = gate("week-2", "week-1", "--anchor", "a", *line)  # the path adapter_config.json names
    assert named["comparisons"] == found["comparisons"]
    given = gate("a", "week-1", "--adapter", "week-2", "--anchor", "a", *line)
    assert given["comparisons"] == found["comparisons"]
    assert given["digests"] == found["digests"]


def test_an_adapter_whose_base_is_not_here_needs_one(weeks: Path) -> None:
    path = weeks / "week-1/adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "org/name"}
    path.write_text(json.dumps(config))
    line = ("gate", "week-1", "a", "--data", "val.jsonl")
    says = ("the base of an adapter is not here", "base_model_name_or_path is org/name", "--base")
    refused(*line, unchanged=weeks, says=says)
    says = ("the candidate is an adapter itself", "--adapter week-2")
    refused(*line, "--adapter", "week-2", unchanged=weeks, says=says, code=2)


# Looks


def test_a_ledger_counts_candidates_and_spends_alpha(here: Path) -> None:
    variant(here, "other", 0.001)
    line = ("--data", "val.jsonl", *FEW, "--ledger", "looks.json")
    assert gate("near", "a", *line)["comparisons"][0]["alpha"] == 0.05 / 2
    again = gate("near", "a", *line)
    assert (again["look"], again["comparisons"][0]["alpha"]) == (1, 0.05 / 2)
    before = (here / "looks.json").read_bytes()
    assert gate("near", "a", *line)["look"] == 1
    assert (here / "looks.json").read_bytes() == before
    second = gate("other", "a", *line)
    assert (second["look"], second["comparisons"][0]["alpha"]) == (2, 0.05 / 6)
    told = clmerge("gate", "other", "a", *line, "--margin", "0.03").out
    assert "look 3 at val: alpha 0.00417 of the 0.05 for all looks, by looks.json" in told
    fresh = gate("other", "a", "--data", "val=code.jsonl", *line[2:])
    assert fresh["look"] == 1  # other rows


def test_rows_that_decide_nothing_take_no_look(here: Path) -> None:
    line = ("near", "a", "--data", "val.jsonl", "--ledger", "looks.json")
    gate(*line, code=11)
    assert gate(*line, *FEW)["look"] == 1


def test_a_repetition_with_another_seed_or_offline_is_counted_too(here: Path) -> None:
    line = ("--data", "val.jsonl", *FEW, "--ledger", "looks.json")
    gate("near", "a", *line, "--write-rows", "losses.jsonl")
    assert gate("near", "a", *line, "--seed", "1")["look"] == 2
    assert gate("--rows", "losses.jsonl", *FEW, "--ledger", "looks.json")["look"] == 1


# Refusals


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("near", "a"), "missing option '--data'"),
        (("near", "--data", "val.jsonl"), "a candidate and a reference"),
        (("near", "a", "b", "--data", "val.jsonl"), "a candidate and a reference"),
        (("near", "a", "--rows", "x.jsonl"), "CANDIDATE means nothing"),
        (("--rows", "x.jsonl", "--data", "val.jsonl"), "--data means nothing"),
        (("--rows", "x.jsonl", "--write-rows", "y.jsonl"), "--write-rows means nothing"),
        (("near", "a", "--data", "val.jsonl", "--margin", "0"), "'--margin'"),
        (("near", "a", "--data", "val.jsonl", "--alpha", "0.5"), "'--alpha'"),
        (("near", "a", "--data", "val.jsonl", "--min-rows", "1"), "'--min-rows'"),
        (("near", "a", "--data", "v.jsonl", "--junit", "x", "-o", "x"), "name one file"),
        (("near", "a", "--data", "v.jsonl", "--data", "x/v.jsonl"), "two suites are called v"),
    ],
)
def test_wrong_usage_is_told(here: Path, line: tuple[str, ...], says: str) -> None:
    refused("gate", *line, unchanged=here, says=(says,), code=2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("none", "a", "--data", "val.jsonl"), "none"),
        (("near", "a", "--data", "none.jsonl"), "no such file"),
        (("near", "a", "--data", "val.jsonl", "--junit", "no/x.xml"), "--junit no/x.xml"),
        (("near", "a", "--data", "val.jsonl", "-o", "a"), "it is a folder"),
        (("near", "a", "--data", "val.jsonl", "--ledger", "no/x.json"), "--ledger no/x.json"),
        (("near", "a", "--data", "val.jsonl", "--ledger", "val.jsonl"), "the ledger is none"),
        (("near", "c", "--data", "labelled.csv"), "as different tokens"),
        (("near", "a", "--data", "val.jsonl", "--adapter", "b"), "this is no adapter"),
        (("--rows", "none.jsonl"), "the losses cannot be read"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    here: Path, line: tuple[str, ...], says: str
) -> None:
    refused("gate", *line, unchanged=here, says=(says,))


def test_models_of_different_tokenizers_are_refused(here: Path) -> None:
    tiny_llama(here / "other", seed=1)
    tiny_tokenizer(here / "other", model_max_length=5)
    says = ("the models read the same rows as different tokens", "other")
    line = ("gate", "other", "a", "--data", "val.jsonl", "--ledger", "looks.json")
    refused(*line, "--write-rows", "losses.jsonl", unchanged=here, says=says)


def test_outputs_that_are_not_finite_are_refused(here: Path) -> None:
    weights = load_file(here / "near/model.safetensors")
    weights["lm_head.weight"][:] = float("nan")
    save_file(weights, here / "near/model.safetensors", metadata={"format": "pt"})
    says = ("the model's outputs are not finite", "near")
    refused("gate", "near", "a", "--data", "val.jsonl", unchanged=here, says=says)


def test_a_gate_writes_nothing_but_what_was_asked_for(here: Path) -> None:
    before = snapshot(here)
    gate("near", "a", "--data", "val.jsonl", *FEW)
    assert snapshot(here) == before
