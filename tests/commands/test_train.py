"""`clmerge train`: from a config file to a run, its plan, and what is said at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.commands.gate import EXIT_CODES
from mergekit_cl.errors import DriftError
from tests.commands.models import write_rows
from tests.commands.running import clmerge, failure_lines, process, refused
from tests.commands.trees import snapshot
from tests.tiny_models import TEXTS, WORDS, tiny_bert_classifier, tiny_llama

CONFIG = """\
model = "base"
[[task]]
name = "cats"
data = ["cats.jsonl"]
steps = 4
[[task]]
name = "films"
data = ["films.jsonl"]
epochs = 2
[replay]
rows = 6
[batch]
rows = 4
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_llama(tmp_path / "base", layers=1, tied=True)
    for name, number in (("cats", 20), ("films", 24)):
        rows = [{"text": f"{TEXTS[k % 8]} {TEXTS[(k + len(name)) % 7]}"} for k in range(number)]
        for k, row in enumerate(rows):
            row["text"] += " one" * (k // 8) + (" movie" if name == "films" else "")
        write_rows(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_becomes_a_model_and_the_next_command_is_told(here: Path) -> None:
    result = clmerge("train", "config.toml")
    assert result.code == 0, result.err
    assert result.out == ""
    assert (here / "run/model/model.safetensors").is_file()
    assert f"model: {here}/run/model" in result.err
    assert f"next: clmerge fisher-merge {here}/run/model OTHER" in result.err


def test_its_help_tells_every_exit_code_of_its_own() -> None:
    said = clmerge("train", "--help").out
    codes = {*EXIT_CODES.values(), DriftError.exit_code}
    assert all(f"{code} " in said[said.index("Exit codes") :] for code in codes)


def test_as_json_there_is_one_document(here: Path) -> None:
    found = clmerge("train", "config.toml", "-o", "out", "--json").document
    assert (found["command"], found["state"]) == ("train", "finished")
    assert Path(found["run"]) == here / "out"
    assert Path(found["model"]) == here / "out/model"
    assert found["decision"] is None


def test_set_and_output_go_before_the_file(here: Path) -> None:
    line = ("--set", "task.0.steps=1", "--set", "lora.rank=2", "-o", "out")
    assert clmerge("train", "config.toml", *line).code == 0
    assert json.loads((here / "out/adapter/adapter_config.json").read_text())["r"] == 2
    steps = [json.loads(line) for line in (here / "out/metrics.jsonl").read_text().splitlines()]
    assert sum(one["kind"] == "step" and one["task"] == "cats" for one in steps) == 1
    said = clmerge("train", "--resume", "out")
    assert f"next: clmerge lora-merge {here}/base out/adapter" in said.err


def test_a_run_is_resumed_without_its_config(here: Path) -> None:
    assert clmerge("train", "config.toml").code == 0
    before = snapshot(here / "run")
    result = clmerge("train", "--resume", "run")
    assert result.code == 0
    assert "up to date" in result.err
    assert snapshot(here / "run") == before


def test_where_there_is_no_run_to_resume_it_is_said_how_to_begin_one(here: Path) -> None:
    result = clmerge("train", "--resume", "nowhere")
    assert result.code == 1
    said = "\n".join(failure_lines(result))
    assert "there is no run to resume" in said
    assert "clmerge train CONFIG -o nowhere" in said
    assert not (here / "nowhere").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ((), "missing argument 'CONFIG'"),
        (("config.toml", "--resume", "run", "--continue", "run"), "give one of them"),
        (("--continue", "run"), "missing argument 'CONFIG'"),
        (("--resume", "run", "-o", "out"), "-o has no place"),
        (("--resume", "run", "--force"), "--force has no place"),
        (("config.toml", "--set", "ewc.lamda=1"), "--set ewc.lambda=..."),
        (("confg.toml",), "config.toml"),
        (("config.toml", "--set", "batch.rows=0"), "a whole number of 1 or more, not 0"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(
    here: Path, line: tuple[str, ...], says: str
) -> None:
    refused("train", *line, unchanged=here, says=(says,), code=2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--set", "model=nowhere"), "no such file or directory"),
        (("--set", "task.0.data=nowhere.jsonl"), "no such file or directory"),
        (("--set", "lora.targets=[nothing]"), "targets"),
        (("--resume", "run"), "there is no run to resume"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_left(
    here: Path, line: tuple[str, ...], says: str
) -> None:
    result = clmerge("train", "config.toml", *line)
    assert result.code in (1, 2)
    assert says in "\n".join(failure_lines(result))
    assert not (here / "run").exists()


def test_the_plan_tells_what_the_run_does(here: Path) -> None:
    before = snapshot(here)
    plan = clmerge("train", "config.toml", "--dry-run", "--json").document
    assert snapshot(here) == before
    assert clmerge("train", "config.toml").code == 0
    lines = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    for task in plan["tasks"]:
        steps = [one for one in lines if one["kind"] == "step" and one["task"] == task["name"]]
        assert len(steps) == task["steps"]
    evaluations = [one for one in lines if one["kind"] == "evaluation"]
    assert len(evaluations) == plan["evaluation"]["times"]
    for name, rows in plan["evaluation"]["rows"].items():
        assert evaluations[0]["tasks"][name]["rows"] == rows
    kept = (here / "run/model/clmerge/buffer.jsonl").read_text().splitlines()
    assert len(kept) == plan["buffer_rows"]
    assert plan["steps"] == sum(task["steps"] for task in plan["tasks"])


def test_the_plan_counts_weights_and_bytes_as_the_run_holds_them(here: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(here / "base")
    count = sum(parameter.numel() for parameter in model.parameters())
    line = ("--set", "ewc.lambda=1.0", "--set", "ema={}")
    plan = clmerge("train", "config.toml", *line, "--dry-run", "--json").document
    assert plan["parameters"] == {"all": count, "trained": count}
    held = plan["memory_bytes"]
    assert held["optimizer"] == 8 * count
    for part in ("weights", "gradients", "average", "fisher", "anchor"):
        assert held[part] == 4 * count
    assert held["total"] == 28 * count


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_plan_of_an_adapter_counts_what_peft_trains(here: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(here / "base")
    whole = sum(parameter.numel() for parameter in model.parameters())
    projections = [p.numel() for n, p in model.named_parameters() if "q_proj" in n]
    peft = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj"]))
    trained, _ = peft.get_nb_trainable_parameters()
    line = ("--set", "lora.rank=3", "--set", "lora.targets=[q_proj]", "--set", "ewc.lambda=1.0")
    plan = clmerge("train", "config.toml", *line, "--dry-run", "--json").document
    assert plan["parameters"] == {"all": whole, "trained": trained}
    assert plan["memory_bytes"]["weights"] == 4 * (whole + trained)
    assert plan["memory_bytes"]["fisher"] == 4 * sum(projections)


def test_the_plan_says_whether_the_gate_can_decide(here: Path) -> None:
    write_rows(here / "many.jsonl", ({"text": f"the cat {'sat ' * (k % 60)}"} for k in range(600)))
    sets = ["gate.suites.many=[many.jsonl]", "gate.min_rows=50", "gate.every=2"]
    line = [word for one in sets for word in ("--set", one)]
    plan = clmerge("train", "config.toml", *line, "--dry-run", "--json").document
    gate = plan["gate"]
    found = {one["suite"]: one for one in gate["suites"]}
    assert gate["spread_measured"]
    assert gate["looks"] == 2 + -(-plan["tasks"][1]["steps"] // 2)
    assert found["many"]["rows"] == 60  # repeats are one row
    assert found["many"]["power_of_last_look"] <= found["many"]["power"]
    assert found["cats"]["power"] == 0
    assert any("fewer than 50 held-out rows" in one for one in plan["warnings"])


def test_the_plan_reads_well(here: Path) -> None:
    result = clmerge("train", "config.toml", "--dry-run", "--set", "gate={}")
    assert result.code == 0
    for part in ("weights are trained (100.00%)", "task ", "held out", "the gate: at most 0.02"):
        assert part in result.out
    assert "warning: fewer than 500 held-out rows decide nothing" in result.out


def test_tasks_of_different_classes_without_replay_are_warned_of(here: Path) -> None:
    tiny_bert_classifier(here / "classifier")
    for label, name in enumerate(("cats", "films")):
        texts = (f"{TEXTS[k % 8]} {'very ' * k}" for k in range(16))
        write_rows(here / f"{name}.jsonl", ({"text": text, "label": label} for text in texts))
    line = ("--set", "model=classifier", "--set", "replay=null", "--set", "ewc.lambda=1.0")
    plan = clmerge("train", "config.toml", *line, "--dry-run", "--json").document
    assert any("different classes and nothing is replayed" in one for one in plan["warnings"])


def test_it_runs_as_a_process(here: Path) -> None:
    result = process("train", "config.toml", "-q", cwd=here)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_prompts_are_learned_where_the_config_says_so(here: Path) -> None:
    rows = [{"prompt": f"{TEXTS[k % 8]} one", "completion": f" {WORDS[k]} two"} for k in range(20)]
    write_rows(here / "cats.jsonl", rows)
    write_rows(here / "films.jsonl", [{**row, "completion": " three"} for row in rows])
    counted = {}
    for only in ("true", "false"):
        line = ("--set", f"batch.completion_only={only}", "--set", "task.0.steps=1", "-o", only)
        assert clmerge("train", "config.toml", *line).code == 0
        lines = map(json.loads, (here / only / "metrics.jsonl").read_text().splitlines())
        counted[only] = next(one["tokens"] for one in lines if one["kind"] == "step")
    assert counted["false"] > counted["true"] == 4 * 3  # two words and the end of each of four rows


def test_the_plan_of_a_run_that_goes_on_knows_what_came_before(here: Path) -> None:
    write_rows(here / "more.jsonl", [{"text": f"{text} hello"} for text in TEXTS])
    more = CONFIG.replace("cats", "more").partition('[[task]]\nname = "films"')[0]
    (here / "next.toml").write_text(f"{more}[ewc]\nlambda = 1.0\n")

    def plan(earlier: str) -> dict[str, Any]:
        line = ("next.toml", "--continue", earlier, "-o", "next", "--dry-run", "--json")
        found: dict[str, Any] = clmerge("train", *line).document
        return found

    assert clmerge("train", "config.toml", "-o", "plain").code == 0
    assert clmerge("train", "config.toml", "-o", "kept", "--set", "ewc.lambda=1.0").code == 0
    unprotected, protected = plan("plain"), plan("kept")
    assert set(protected["evaluation"]["rows"]) >= {"cats", "films"}
    assert protected["memory_bytes"]["fisher"] > unprotected["memory_bytes"]["fisher"] == 0
    lacking = "kept no Fisher of its tasks"
    assert any(lacking in one for one in unprotected["warnings"])
    assert not any(lacking in one for one in protected["warnings"])
    assert clmerge("train", "next.toml", "--continue", "kept", "-o", "next").code == 0
    first = json.loads((here / "next/metrics.jsonl").read_text().splitlines()[0])
    measured = {name: one["rows"] for name, one in first["tasks"].items()}
    assert measured == protected["evaluation"]["rows"]


def test_sidecars_are_not_silently_left_out_of_a_run_that_goes_on(here: Path) -> None:
    assert clmerge("train", "config.toml").code == 0
    (here / "next.toml").write_text(
        'model = "base"\n[[task]]\nname = "more"\ndata = ["cats.jsonl"]\n'
        '[ewc]\nlambda = 1.0\nsidecars = ["run/model/clmerge/fisher.safetensors"]\n'
        'anchors = ["run/model"]\n'
    )
    line = ("train", "next.toml", "--continue", "run", "-o", "next")
    refused(*line, unchanged=here, says=("and no sidecars", "leave out one"), code=2)
