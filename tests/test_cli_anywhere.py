"""What a person mistypes or a script asks for anywhere on the line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.cli import COMMANDS
from tests.commands.checkpoints import checkpoint
from tests.commands.running import clmerge


@pytest.mark.parametrize("line", ["--help", "-h", *(f"{name} --help" for name in COMMANDS)])
@pytest.mark.parametrize("first", [True, False])
def test_help_is_a_document_where_json_is_asked_for(line: str, first: bool) -> None:
    words = ["--json", *line.split()] if first else [*line.split(), "--json"]
    result = clmerge(*words)
    assert (result.code, result.err) == (0, "")
    assert result.document == {"help": clmerge(*line.split()).out.rstrip()}


def test_the_version_is_one_too() -> None:
    assert clmerge("--version", "--json").document["version"] == clmerge("--version").out.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_form_of_quiet_is_on_every_help_page(name: str) -> None:
    assert "-q, --quiet" in clmerge(name, "--help").out


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("--jsn", "--json"),
        ("--jsn linear-merge a b", "--json"),
        ("--quite", "--quiet"),
        ("--debgu inspect a", "--debug"),
        ("--hlep", "--help"),
        ("--verson", "--version"),
    ],
)
def test_a_mistyped_flag_of_the_group_has_a_suggestion(line: str, near: str) -> None:
    result = clmerge(*line.split())
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"  try: {near}"


def test_a_mistyped_path_has_the_nearest_one_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "models/model")
    checkpoint(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    for typed, meant in (
        ("models/modle", "models/model"),
        ("./modles/model", "models/model"),
        ("models/model/model.safetensor", "models/model/model.safetensors"),
        (str(tmp_path / "models/modle"), str(tmp_path / "models/model")),
    ):
        result = clmerge("inspect", typed)
        assert result.code == 1
        assert result.err.splitlines()[-1].startswith(f"  try: {meant}"), result.err
    assert "try:" not in clmerge("inspect", "xyz").err
    (tmp_path / "rows.jsonl").write_text("{}")
    told = clmerge("fisher", "other", "--data", "row.jsonl").err
    assert told.splitlines()[-1] == "  try: rows.jsonl"


def test_only_what_exists_is_near(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert nearest_path(tmp_path / "modle") == tmp_path / "model"
    assert nearest_path(tmp_path / "modle/x.safetensors") is None
    assert nearest_path(tmp_path / "model") is None
    assert nearest_path(Path("x\0y")) is None


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_do_not_spin_unless_somebody_wants_that(
    tmp_path: Path, given: str | None, found: str
) -> None:
    # Read by OpenMP while torch is loaded: it must be there before, and stay as a user set it.
    model = checkpoint(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text('{"text": "a b"}')
    script = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print('at torch:', os.environ.get('OMP_WAIT_POLICY'), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from mergekit_cl.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    line = ["fisher", str(model), "--data", str(tmp_path / "rows.jsonl")]
    ran = subprocess.run(
        [sys.executable, "-c", script, *line],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout.split() == ["at", "torch:", found], ran


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--data", "s3://bucket/rows.jsonl"), ("rows are read from this disk", "s3://bucket")),
        (
            ("--data", "rows.jsonl", "--adapter", "https://u:secret@host/adapter"),
            ("an adapter is read from this disk or from the hub", "https://host/adapter"),
        ),
    ],
)
def test_places_a_fisher_cannot_read_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], says: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text('{"text": "a b"}')
    result = clmerge("fisher", "m", *more)
    assert result.code == 1 or result.code == 2
    assert all(part in result.err for part in says), result.err
    assert "try: copy" in result.err
    assert "secret" not in result.err


def test_a_long_path_in_the_layers_table_is_shown_whole(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from mergekit_cl.divergence.summary import Parent, summarise
    from mergekit_cl.divergence.sums import Sums
    from mergekit_cl.report.merge import layers_table

    path = "/a/very/long/path/" + "/".join(f"folder-{n}" for n in range(12)) + "/checkpoint-3000"
    sums = {"model.layers.0.up.weight": [Sums(count=4, parent_square=4.0, difference_square=1.0)]}
    text = StringIO()
    Console(file=text, width=80).print(layers_table(summarise(sums, [Parent(path)])))
    column = text.getvalue().splitlines()
    assert "…" not in text.getvalue()
    start = column[1].index("from")
    told = "".join(line[start:].split()[0] for line in column[2:] if len(line) > start)
    assert told == path
