"""A config file becomes a Config, or one message that says all that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from mergekit_cl.errors import OptionError
from mergekit_cl.tuning.reading import config_text, read_config, write_config
from mergekit_cl.tuning.schema import Config
from tests.tuning.configs import configs

TOML = """\
model = "models/base"
[[task]]
name = "week-1"
data = ["rows/*.jsonl"]
steps = 10
[optimizer]
learning_rate = 1e-4
"""
YAML = """\
model: models/base
task:
  - name: week-1
    data: [rows/*.jsonl]
    steps: 10
optimizer: {learning_rate: 1e-4}
"""


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    (folder / "models/base").mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *sets: str) -> str:
    with pytest.raises(OptionError) as refused:
        read_config(path, sets)
    return f"{refused.value.message}\n{refused.value.detail}\n{refused.value.hint}"


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, YAML)) == read_config(
        written(tmp_path, TOML, "config.toml")
    )


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(config=configs())
def test_a_config_that_is_written_reads_as_the_same(tmp_path: Path, config: Config) -> None:
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml") == config


def test_a_written_config_holds_every_key_that_was_used(tmp_path: Path) -> None:
    text = config_text(read_config(written(tmp_path, YAML)))
    for line in ("  rows: 8", "  schedule: linear", "lora: null", "  learning_rate: 0.0001"):
        assert line in text.splitlines(), line


def test_paths_of_the_file_are_relative_to_it_and_those_of_the_line_to_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    sets = ["task.0.validation=held.jsonl", "gate.suites.old=[a.jsonl, /b.jsonl]"]
    config = read_config(written(tmp_path, YAML), sets)
    assert config.model == f"{tmp_path}/models/base"
    assert config.task[0].data == [f"{tmp_path}/rows/*.jsonl"]
    assert config.task[0].validation == [f"{here}/held.jsonl"]
    assert config.gate is not None
    assert config.gate.suites == {"old": [f"{here}/a.jsonl", "/b.jsonl"]}
    assert config.output == f"{here}/run"
    assert read_config(written(tmp_path, YAML + "output: out\n")).output == f"{tmp_path}/out"
    assert read_config(written(tmp_path, YAML), output=Path("out")).output == f"{here}/out"


def test_places_elsewhere_and_at_home_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = written(tmp_path, YAML.replace("models/base", "hf://org/name@main"))
    config = read_config(path, ["replay.buffer=~/buffer.jsonl"])
    assert config.model == "hf://org/name@main"
    assert config.replay is not None
    assert config.replay.buffer == "/home/me/buffer.jsonl"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("ewc.lambda=auto", "ewc.strength", "auto"),
        ("ewc.lambda=1e3", "ewc.strength", 1000.0),
        ("optimizer.learning_rate=3e-5", "optimizer.learning_rate", 3e-5),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", (0.8, 0.9)),
        ("optimizer.betas=[.8, .95]", "optimizer.betas", (0.8, 0.95)),
        ("replay.ratio=.5", "replay.ratio", 0.5),
        ("optimizer.clip=2.", "optimizer.clip", 2.0),
        ("task.0.text_field=.5", "task.0.text_field", ".5"),
        ("task.0.steps=3", "task.0.steps", 3),
        ("task.0.name=007", "task.0.name", "007"),
        ("task.0.text_field=2026-11-22", "task.0.text_field", "2026-11-22"),
        ('task.0.text_field="body"', "task.0.text_field", "body"),
        ("task.0.data=/a.jsonl", "task.0.data", ["/a.jsonl"]),
        ("lora.targets=[q_proj,v_proj]", "lora.targets", ["q_proj", "v_proj"]),
        ("lora.targets=all-linear", "lora.targets", "all-linear"),
        ("ema={}", "ema.half_life", 700.0),
        ("ema.publish=false", "ema.publish", False),
        ("drift.arl=5000", "drift.mean_time_between_false_alarms", 5000),
        ("gate.suites.v1.2=/x.jsonl", "gate.suites", {"v1.2": ["/x.jsonl"]}),
        ("task.0.steps=null", "task.0.steps", None),
    ],
)
def test_set_changes_one_key(tmp_path: Path, line: str, key: str, value: Any) -> None:
    found: Any = read_config(written(tmp_path, YAML), [line])
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_later_set_wins_and_null_takes_a_section_out(tmp_path: Path) -> None:
    path = written(tmp_path, YAML + "ewc: {lambda: 1}\n")
    assert read_config(path, ["ewc.lambda=2", "ewc.lambda=3"]).ewc.strength == 3  # type: ignore[union-attr]
    assert read_config(path, ["ewc=null"]).ewc is None


@pytest.mark.parametrize("line", ["ewc.lambda=1", "ewc.auto.budget=1"])
def test_a_table_that_the_file_has_as_a_list_is_no_place_for_a_key(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "config.toml").write_text('model = "m"\n[[task]]\nname = "a"\n[[ewc]]\n')
    with pytest.raises(OptionError, match="needs a table") as refused:
        read_config(tmp_path / "config.toml", [line])
    assert "[ewc] in TOML" in str(refused.value.hint)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = """\
modl: base
task:
  - {name: a b, data: rows.jsonl, epochs: 1.5, step: 3}
ewc: {lambda: x, lamda: 3}
gate: {margin: -1, suites: {a: b}}
"""
    said = problems(written(tmp_path, text), "batch.rows=0")
    for line in (
        "the config has 10 problems",
        "config.yaml:\n",
        "modl: no such key; did you mean model?",
        "model: missing: a model's path",
        "task.0.name: a name of letters, digits, '.', '_' and '-', not \"a b\"",
        'task.0.data: a list of paths, not "rows.jsonl"',
        "task.0.step: no such key; did you mean task.0.steps?",
        'ewc.lambda: a number of 0 or more, or auto, not "x"',
        "ewc.lamda: no such key; did you mean ewc.lambda?",
        "gate.margin: a number above 0, not -1",
        'gate.suites.a: a list of paths, not "b"',
        "--set batch.rows: a whole number of 1 or more, not 0",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("ewc.lamda", "ewc.lambda"),
        ("batch_size", "batch.rows"),
        ("rank", "lora.rank"),
        ("replay.rato", "replay.ratio"),
        ("task.0.max_steps", "task.0.steps"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_of_its_table_or_of_another(
    tmp_path: Path, key: str, near: str
) -> None:
    assert f"--set {near}=" in problems(written(tmp_path, YAML), f"{key}=1")


def test_keys_and_their_other_names_in_code_are_not_both_keys(tmp_path: Path) -> None:
    said = problems(written(tmp_path, YAML + "ewc: {strength: 3}\n"))
    assert "ewc.lambda: missing" in said
    assert "ewc.strength: no such key" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task:\n- {name: a, data: [x], steps: 1, epochs: 2}", "steps or epochs, not both"),
        ("task:\n- {name: a, data: [x]}\n- {name: a, data: [y]}", "two tasks have the same name"),
        ("task:\n- {name: a, data: [x]}\ngate: {suites: {a: [y]}}", "the name of a task"),
        ("task:\n- {name: a, data: [x]}\newc: {lambda: 1, sidecars: [s]}", "belong together"),
        ("task:\n- {name: a, data: [x]}\nema:", "{} for its defaults, or null for none"),
        ("task: {name: a, data: [x]}", "a list of tables"),
        ("task:\n- {name: a, data: [x]}\nsave_every: .inf", "a whole number"),
        ("task:\n- {name: a, data: [x]}\noptimizer: {clip: .nan}", "optimizer.clip: a number"),
        ("task:\n- {name: a, data: [x]}\nfisher: yes", 'true or false, not "yes"'),
    ],
)
def test_what_keys_say_together_must_agree(tmp_path: Path, text: str, says: str) -> None:
    assert says in problems(written(tmp_path, f"model: /m\n{text}\n"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.toml", "model = ", "config.toml: Invalid value"),
        ("config.yaml", "a: [1", "line 1, column 6: expected"),
        ("config.yaml", "a: 1\na: 2", "line 2, column 1: the key a stands there twice"),
        ("config.yaml", "[1]", "the config is no table"),
        ("config.yaml", "", "model: missing"),
        ("config.json5", "{}", "name it config.toml or config.yaml"),
        ("config.yaml", "[" * 3000, "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_words(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    assert says in problems(written(tmp_path, text, name))


def test_a_config_that_is_not_there_is_told_its_neighbour(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    assert str(path) in problems(tmp_path / "confg.yaml")


def test_a_bare_name_of_the_hub_is_no_path(tmp_path: Path) -> None:
    said = problems(written(tmp_path, YAML.replace("models/base", "org/model")))
    assert f"model: no such file or directory: {tmp_path}/org/model" in said
    assert "hf://org/model if this is a model on the hub" in said
