"""What a run writes, against transformers' reading of it and a plain loop of torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import config_of, lines_of, steps_of, trained, write_labelled, write_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_cl.errors import OutputError
from mergekit_cl.training.tokenizer import load_tokenizer
from mergekit_cl.tuning.order import Passes
from mergekit_cl.tuning.taskrows import Reader, read_tasks


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model", dtype=torch.bfloat16, tied=True)
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Path]:
    return {name: write_text(tmp_path / f"{name}.jsonl", 60, n) for n, name in enumerate("ab")}


def test_a_run_leaves_a_model_that_transformers_opens(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    outcome, _ = trained(config_of(tmp_path, model, text))
    assert outcome.state == "finished"
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(outcome.model / "model.safetensors"),
    )
    assert {n: (t.dtype, t.shape) for n, t in before.items()} == {
        n: (t.dtype, t.shape) for n, t in after.items()
    }
    assert any(not torch.equal(before[name], after[name]) for name in before)
    opened = AutoModelForCausalLM.from_pretrained(outcome.model)
    assert opened.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(outcome.model).vocab_size


def test_the_loss_of_what_is_learned_falls(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    trained(config_of(tmp_path, model, text, steps=30))
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["after"] for line in evaluations] == [None, "a", "b"]
    before, after_a, _ = (line["tasks"] for line in evaluations)
    assert after_a["a"]["loss"] < before["a"]["loss"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 61))
    assert sum(line["loss"] for line in steps[20:30]) < sum(line["loss"] for line in steps[:10])


def test_a_classifier_learns_its_labels(tmp_path: Path) -> None:
    labels = ("negative", "neutral", "positive")
    tiny_bert_classifier(tmp_path / "model", labels=labels)
    tasks = {"words": write_labelled(tmp_path / "rows.jsonl", 200, 0, labels)}
    trained(config_of(tmp_path, tmp_path / "model", tasks, steps=60, batch={"rows": 16}))
    evaluations = [e for e in lines_of(tmp_path / "run/metrics.jsonl") if e["kind"] == "evaluation"]
    assert evaluations[-1]["tasks"]["words"]["accuracy"] > 0.9


def test_validation_rows_are_trained_on_by_no_task(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(text["a"].read_text() + text["b"].read_text())
    config = config_of(tmp_path, model, {"a": text["a"], "both": both})
    reader = Reader(load_tokenizer(model), "causal-lm", {}, 64, True)
    first, second = read_tasks(config, reader, held_out=())
    assert first.validation
    assert not (first.validation.keys() | second.validation.keys()) & (
        first.train.keys() | second.train.keys()
    )
    (third, _) = read_tasks(config, reader, held_out=list(first.train)[:3])
    assert third.train.keys() == set(list(first.train)[3:])


def test_the_same_run_again_is_up_to_date_and_one_of_other_rows_is_not(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    config = config_of(tmp_path, model, text)
    trained(config)
    again, _ = trained(config)
    assert again.state == "up to date"
    rows = next(iter(text.values()))
    kept = rows.read_bytes()
    try:
        rows.write_bytes(kept + b'{"text": "a row that was not there before"}\n')
        with pytest.raises(OutputError, match="a finished run is there already"):
            trained(config)
    finally:
        rows.write_bytes(kept)


def test_a_run_of_other_files_under_the_same_names_is_not_up_to_date(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    held = write_text(tmp_path / "held.jsonl", 10, 7)
    alone = {"a": text["a"]}
    first, _ = trained(config_of(tmp_path, model, alone, replay={}, output=str(tmp_path / "first")))
    buffer = first.model / "clmerge"
    config = config_of(
        tmp_path,
        model,
        alone,
        gate={"suites": {"held": [str(held)]}},
        replay={"buffer": str(buffer)},
    )
    trained(config)
    assert trained(config)[0].state == "up to date"
    for path in (held, buffer / "buffer.jsonl"):
        kept = path.read_bytes()
        path.write_bytes(b"".join(kept.splitlines(keepends=True)[1:]))
        with pytest.raises(OutputError, match="a finished run is there already"):
            trained(config)
        path.write_bytes(kept)
    assert trained(config)[0].state == "up to date"


def test_an_output_that_exists_is_not_overwritten_and_what_to_type_is_said(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    config = config_of(tmp_path, model, text)
    trained(config)
    again, _ = trained(config, resume=tmp_path / "run")
    assert again.state == "up to date"
    with pytest.raises(OutputError) as refused:
        trained(config.model_copy(update={"seed": config.seed + 1}))
    assert "--continue" in str(refused.value.hint)
    fresh, _ = trained(config, force=True)
    assert fresh.state == "finished"
    assert not list(tmp_path.glob(".run*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    elsewhere = config.model_copy(update={"output": str(tmp_path / "other")})
    with pytest.raises(OutputError, match="no run of clmerge"):
        trained(elsewhere, force=True)


def test_a_run_learns_what_a_plain_loop_of_torch_learns(tmp_path: Path) -> None:
    steps, warmup, rate = 12, 3, 1e-2
    tiny_llama(tmp_path / "model", tied=True)
    data = {"a": write_text(tmp_path / "a.jsonl", 40, 0)}
    settings = {"learning_rate": rate, "weight_decay": 0.1, "clip": 0.5, "warmup": warmup}
    config = config_of(
        tmp_path, tmp_path / "model", data, steps=steps, optimizer=settings, fisher=False
    )
    trained(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    reader = Reader(load_tokenizer(tmp_path / "model"), "causal-lm", {}, 512, True)
    (task,) = read_tasks(config, reader, held_out=())
    order = Passes(tuple(task.encoded), seed=config.seed, task="a").take(0, 4 * steps)
    texts = [task.train[name].content["text"] for name in order]
    tokens = [load_tokenizer(tmp_path / "model")(text)["input_ids"] for text in texts]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], rate
    )
    norms = []
    for step in range(steps):
        rows = [torch.tensor([ids]) for ids in tokens[4 * step : 4 * step + 4]]
        predicted = [model(ids).logits[0, :-1] for ids in rows]  # alone: no padding, no mask
        wanted = [ids[0, 1:] for ids in rows]
        loss = torch.nn.functional.cross_entropy(
            torch.cat(predicted), torch.cat(wanted), reduction="sum"
        )
        optimizer.zero_grad()
        (loss / sum(map(len, wanted))).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        left = (steps - step) / (steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * ((step + 1) / warmup if step < warmup else left)
        optimizer.step()
    assert [line["gradient_norm"] for line in steps_of(tmp_path / "run")] == pytest.approx(
        norms, rel=1e-4
    )
    assert max(norms) > 0.5  # something was clipped
    mine = load_file(tmp_path / "run/model/model.safetensors")
    plain = dict(model.named_parameters())
    for name, values in mine.items():
        assert float((values - plain[name].detach()).norm() / values.norm()) < 1e-5, name


def test_a_batch_in_three_uneven_parts_is_learned_as_one(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    data = {"a": write_text(tmp_path / "a.jsonl", 40, 0)}
    for parts in (1, 3):
        batch = {"rows": 7, "accumulate": parts}
        output = str(tmp_path / f"{parts}")
        trained(config_of(tmp_path, tmp_path / "model", data, batch=batch, output=output))
    one, three = (load_file(tmp_path / f"{n}/model/model.safetensors") for n in (1, 3))
    for name, values in one.items():
        assert float((values - three[name]).norm() / values.norm()) < 1e-5, name
    for key in ("loss", "gradient_norm"):
        whole, parted = ([line[key] for line in steps_of(tmp_path / n)] for n in "13")
        assert parted == pytest.approx(whole, rel=1e-5)
