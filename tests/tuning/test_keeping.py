"""What a task leaves: its Fisher, its anchor, its rows; and that EWC uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making import by_fisher, merge
from safetensors.torch import load_file
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import config_of, lines_of, steps_of, trained, write_labelled, write_text

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import MismatchError
from mergekit_cl.training.model import build


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Path]:
    return {name: write_text(tmp_path / f"{name}.jsonl", 60, n) for n, name in enumerate("ab")}


def state_of(run: Path, file: str) -> dict[str, torch.Tensor]:
    (found,) = run.glob(f"state/*/{file}")
    return load_file(found)


def test_the_sidecar_is_the_one_that_clmerge_fisher_would_write(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    import fisher
    from mergekit_cl.estimating.request import FisherRequest
    from mergekit_cl.estimating.run import run_fisher
    from mergekit_cl.report.progress import no_progress

    tasks = {"a": text["a"]}
    config = config_of(tmp_path, model, tasks)
    whole = config.task[0].model_copy(update={"validation_share": 0.0})
    outcome, _ = trained(config.model_copy(update={"task": [whole]}))
    mine, said = fisher.load(outcome.model / "clmerge/fisher.safetensors")
    request = FisherRequest(
        str(outcome.model), (str(text["a"]),), target=tmp_path / "again.safetensors"
    )
    run_fisher(request, no_progress, lambda _: None)
    theirs, also = fisher.load(tmp_path / "again.safetensors")
    assert said["weights_digest"] == also["weights_digest"]
    assert said["data_digest"] == also["data_digest"]
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(mine[name], values, rtol=1e-2, atol=0)


def test_two_runs_can_be_merged_by_their_sidecars_without_another_option(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    models = [
        trained(config_of(tmp_path, model, {n: path}, output=str(tmp_path / f"run-{n}")))[0].model
        for n, path in text.items()
    ]
    assert merge(by_fisher(models), tmp_path / "merged").target == tmp_path / "merged"
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_a_strong_penalty_holds_the_second_task_near_the_first(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    """Distances, weighted by the Fisher that EWC uses, against training without it."""

    def moved(strength: float) -> float:
        ewc = {"lambda": strength, "samples": 40, "update": "proximal", "mode": "sum"}
        sgd = {"name": "sgd", "learning_rate": 0.1}
        output = tmp_path / f"run-{strength:g}"
        trained(
            config_of(tmp_path, model, text, ewc=ewc, optimizer=sgd, output=str(output), steps=12)
        )
        # The protection of both tasks: the anchor of "a" is what b's weighted mean moves from.
        now = state_of(output, "weights.safetensors")
        held = state_of(output, "protection.safetensors")
        return sum(
            float((held[f"fisher:{name}"] * (held[f"anchor:{name}"] - now[name]) ** 2).sum())
            for name in now
        )

    assert moved(1000.0) < 0.1 * moved(1e-6)


@pytest.mark.parametrize("head", [[], ["classifier"]])
def test_the_fisher_of_an_adapted_model_is_that_of_the_merged_weights(
    tmp_path: Path, head: list[str]
) -> None:
    import fisher
    from mergekit_cl.estimating.request import FisherRequest
    from mergekit_cl.estimating.run import run_fisher
    from mergekit_cl.report.progress import no_progress
    from mergekit_cl.verifying import verify

    labels = ("negative", "neutral", "positive")
    tiny_bert_classifier(tmp_path / "model", labels=labels)
    rows = write_labelled(tmp_path / "rows.jsonl", 40, 0, labels)
    lora = {"rank": 2, "targets": ["query", "value"], "modules_to_save": head}
    config = config_of(tmp_path, tmp_path / "model", {"a": rows}, lora=lora)
    whole = config.task[0].model_copy(update={"validation_share": 0.0})
    outcome, _ = trained(config.model_copy(update={"task": [whole]}))
    mine, _ = fisher.load(outcome.model / "clmerge/fisher.safetensors")
    assert not verify(outcome.model, no_progress).differences
    sidecar = str(outcome.model / "clmerge/fisher.safetensors")
    ewc = {"lambda": 1.0, "sidecars": [sidecar], "anchors": [str(tmp_path / "model")]}
    with pytest.raises(MismatchError, match="with an adapter in the weights"):
        trained(config_of(tmp_path, tmp_path / "model", {"b": rows}, ewc=ewc, output="elsewhere"))
    request = FisherRequest(
        str(tmp_path / "model"),
        (str(rows),),
        adapter=outcome.model,
        target=tmp_path / "again.safetensors",
    )
    run_fisher(request, no_progress, lambda _: None)
    theirs, _ = fisher.load(tmp_path / "again.safetensors")
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(mine[name], values, rtol=1e-2, atol=1e-12)


def test_the_anchor_of_an_adapted_model_is_what_lora_merge_makes_of_it(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    ewc = {"lambda": 10.0, "samples": 20}
    lora = {"rank": 2, "targets": ["q_proj", "down_proj"]}
    outcome, told = trained(
        config_of(tmp_path, model, text, lora=lora, ewc=ewc, optimizer={"learning_rate": 0.05})
    )
    assert "100.0% of the Fisher of earlier tasks is held back" in told
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    (said,) = (line for line in lines if line["kind"] == "protection")
    assert (said["task"], said["lambda"]) == ("b", 10.0)
    assert said["fisher"] == [{"estimator": "mc", "unit": "per_example"}]
    held = state_of(tmp_path / "run", "protection.safetensors")
    names = {key.partition(":")[2] for key in held}
    assert len(names) == 4
    assert all("q_proj" in name or "down_proj" in name for name in names)
    with open_checkpoint(model) as base:
        merged = build(base, adapter=outcome.model)
        start = build(base)
    last = {name: merged.model.get_parameter(name).detach() for name in names}
    first = {name: start.model.get_parameter(name).detach() for name in names}
    for name in names:
        # A Fisher-weighted mean of where both tasks ended: between the base and the end.
        assert not torch.equal(held[f"anchor:{name}"], first[name])
        assert (held[f"anchor:{name}"] - last[name]).norm() < (first[name] - last[name]).norm()
    assert any("penalty" in line for line in steps_of(tmp_path / "run"))


def test_a_row_that_the_gate_judges_by_is_not_replayed_from_a_given_buffer(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    from mergekit_cl.training.bufferfile import load_buffer

    replay: dict[str, object] = {"rows": 30, "ratio": 0.5}
    a, b = ({name: text[name]} for name in "ab")
    first, _ = trained(config_of(tmp_path, model, a, replay=replay, output=str(tmp_path / "first")))
    replay["buffer"] = str(first.model / "clmerge")
    gate = {"suites": {"held": [str(text["a"])]}}
    outcome, _ = trained(config_of(tmp_path, model, b, replay=replay, gate=gate))
    assert {kept.task for kept in load_buffer(outcome.model / "clmerge").rows()} == {"b"}
    assert all(line["replay_loss"] is None for line in steps_of(tmp_path / "run"))


def test_the_buffer_holds_rows_of_each_task_and_none_that_validate(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    from mergekit_cl.training.bufferfile import load_buffer

    replay = {"rows": 30, "ratio": 0.5}
    outcome, _ = trained(config_of(tmp_path, model, text, replay=replay))
    buffer = load_buffer(outcome.model / "clmerge")
    assert {kept.task for kept in buffer.rows()} == {"a", "b"}
    validation = (tmp_path / "run/validation").glob("*.jsonl")
    held_out = "".join(path.read_text() for path in validation)
    assert held_out
    assert not any(kept.row.id in held_out for kept in buffer.rows())
    lines = steps_of(tmp_path / "run")
    assert all(line["replay_loss"] is None for line in lines[:6])
    assert lines[-1]["replay_share"] == 0.5
