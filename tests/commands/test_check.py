"""`clmerge check`: policies, exit codes, and what is worse than in a release before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_cl.decide.policy import DEFAULT, METRICS
from mergekit_cl.policyfile import read_policy
from tests.commands.checkpoints import SHAPES, checkpoint, weights
from tests.commands.comparisons import check, diff
from tests.commands.running import clmerge, process, refused
from tests.commands.verifications import save

EMBED, LAYER0, LAYER1, NORM = SHAPES


@pytest.fixture
def merged(place: Path) -> Path:
    """a, b and their merge in bfloat16; policies near.toml and far.toml."""
    assert clmerge("linear-merge", "a", "b", "--dtype", "bfloat16", "-q").code == 0
    (place / "near.toml").write_text("[model]\nrel_l2 = 0.001\n")
    (place / "far.toml").write_text("[model]\nrel_l2 = 100\n")
    return place / "merged"


def reasons(document: Any) -> list[str]:
    found: list[str] = document["verdict"]["reasons"]
    return found


def test_a_check_is_ok_or_lossy_by_its_policy(merged: Path) -> None:
    assert clmerge("check", "merged", "a", "b").code == 0
    assert clmerge("check", "merged", "a", "b", "--policy", "far.toml").code == 0
    result = clmerge("check", "merged", "a", "b", "--policy", "near.toml")
    assert result.code == 10
    assert "verdict: lossy" in result.out
    assert "from a (above 0.001)" in result.out
    assert "from b (above 0.001)" in result.out
    assert "try: give that model more weight: --weights" in result.out


def test_a_document_holds_the_metrics_against_every_parent(merged: Path) -> None:
    document = check("merged", "a", "b")
    assert document["parents"] == ["a", "b"]
    assert [row["parent"] for row in document["model_by_parent"]] == ["a", "b"]
    for parent in ("a", "b"):
        alone = diff("merged", parent)
        mine = [row for row in document["tensors"] if row["parent"] == parent]
        assert mine == alone["tensors"]
    assert document["verdict"]["lossy"] is False
    assert document["policy"] == DEFAULT.to_json()


def test_lost_rounding_is_seen_from_the_record_and_excused_where_it_was_kept(place: Path) -> None:
    near = {name: t.bfloat16() for name, t in weights(1).items()}
    checkpoint(place / "x", near)
    moved = {name: (t.float() * (1 + 2e-4)).float() for name, t in near.items()}
    checkpoint(place / "y", moved)
    line = ("linear-merge", "x", "y", "--dtype", "bfloat16", "-q")
    assert clmerge(*line).code == 0
    document = check("merged", "x", "y", code=10)
    assert any(reason.startswith("rounding kept") for reason in reasons(document))
    assert "write float32: --dtype float32" in document["verdict"]["advice"]
    told = clmerge("check", "merged", "x", "y").out
    assert "of the update from x" in told
    assert "least of it in " in told
    assert "to keep more: write float32 (--dtype float32)" in told
    kept = ("linear-merge", "x", "y", "--dtype", "bfloat16", "-o", "kept", "--carry")
    assert clmerge(*kept).code == 0
    assert check("kept", "x", "y")["model"]["survival"] < 0.5


def test_strict_refuses_what_check_would_fail(merged: Path, place: Path) -> None:
    strict = ("linear-merge", "a", "b", "--strict", "--policy", "near.toml", "-o", "strict")
    assert clmerge(*strict).code == 10
    assert not (place / "strict").exists()
    assert clmerge(*strict, "--publish-anyway").code == 10
    assert clmerge("check", "strict", "a", "b", "--policy", "near.toml").code == 10


def test_missing_tensors_are_lossy_unless_left_out(place: Path) -> None:
    part = weights(1)
    del part[NORM]
    checkpoint(place / "part", part)
    document = check("part", "a", code=10)
    assert reasons(document) == ["1 tensors of a are missing (above 0)"]
    check("part", "a", "--exclude", "*norm*")
    (place / "one.toml").write_text("[model]\nmissing = 1\n")
    check("part", "a", "--policy", "one.toml")


def test_layers_and_tensors_are_held_to_their_patterns(merged: Path, place: Path) -> None:
    policy = place / "p.toml"
    policy.write_text('[layers."*.layers.0"]\nrel_l2 = 0.001\n[tensors."*norm*"]\nrel_l2 = 0.01\n')
    document = check("merged", "a", "--policy", policy, code=10)
    found = {(f["level"], f["name"], f["metric"]) for f in document["findings"]}
    assert found == {("layer", "model.layers.0", "rel_l2"), ("tensor", NORM, "rel_l2")}
    assert reasons(document)[0].startswith("layer model.layers.0: rel_l2 ")
    assert reasons(document)[1].startswith(f"{NORM}: rel_l2 ")


# --write-policy


def test_the_written_policy_is_the_built_in_one(place: Path) -> None:
    result = clmerge("check", "--write-policy", "policy.toml")
    assert (result.code, result.out) == (0, "")
    assert "wrote policy.toml" in result.err
    assert read_policy(Path("policy.toml")) == DEFAULT
    text = Path("policy.toml").read_text()
    for metric in METRICS:
        assert metric in text
    for metric in DEFAULT.model:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{metric} = "))
        assert "#" in line
    assert clmerge("linear-merge", "a", "b", "--policy", "policy.toml", "-q").code == 0
    assert clmerge("check", "merged", "a", "b", "--policy", "policy.toml").code == 0


def test_a_policy_is_not_overwritten_unless_forced(place: Path) -> None:
    Path("mine.toml").write_text("[model]\n")
    says = ("the policy is there already", "try: --force")
    refused("check", "--write-policy", "mine.toml", unchanged=place, says=says)
    assert clmerge("check", "--write-policy", "mine.toml", "--force").code == 0
    assert read_policy(Path("mine.toml")) == DEFAULT
    says = ("the policy cannot be written", "no/where.toml")
    refused("check", "--write-policy", "no/where.toml", unchanged=place, says=says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("check",), "a merged model and at least one parent"),
        (("check", "a"), "a merged model and at least one parent"),
        (("check", "a", "b", "--force"), "--force belongs to --write-policy"),
        (("check", "a", "--write-policy", "x.toml"), "--write-policy stands alone"),
        (("check", "a", "b", "--fisher", "x", "--fisher", "y"), "1 parents need 1 --fisher"),
        (("check", "a", "b", "--policy", "none.toml"), "the policy cannot be read"),
        (("check", "a", "b", "--polcy", "x"), "no such option"),
    ],
)
def test_wrong_usage_is_told(place: Path, line: tuple[str, ...], says: str) -> None:
    refused(*line, unchanged=place, says=(says,), code=2)


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_report_that_cannot_be_written_is_an_error(place: Path, option: str) -> None:
    says = ("a report cannot be written", f"{option} no/where")
    refused("check", "a", "b", option, "no/where", unchanged=place, says=says)


# --baseline


def release(place: Path, *line: str, **edits: float) -> Path:
    """What `check --json` says, as the baseline of the next; edits: model metrics against a."""
    result = clmerge("check", *line, "--json")
    document = result.document
    document["model_by_parent"][0].update(edits)
    path = place / "last.json"
    path.write_text(json.dumps(document))
    return path


def test_what_is_no_worse_than_last_time_passes(merged: Path, place: Path) -> None:
    near = ("merged", "a", "b", "--policy", "near.toml")
    check(*near, code=10)
    last = release(place, *near)
    document = check(*near, "--baseline", last)
    assert document["verdict"]["reasons"] == []
    assert [f["metric"] for f in document["known"]] == ["rel_l2", "rel_l2"]
    told = clmerge("check", *near, "--baseline", last).out
    assert f"no worse than in {last}: rel_l2" in told
    assert "verdict: ok" in told


@pytest.mark.parametrize(("factor", "code"), [(0.96, 0), (0.9, 10), (2.0, 0)])
def test_what_got_worse_by_more_than_the_tolerance_fails(
    merged: Path, place: Path, factor: float, code: int
) -> None:
    near = ("merged", "a", "b", "--policy", "near.toml")
    before = check(*near, code=10)["model_by_parent"][0]["rel_l2"] * factor
    last = release(place, *near, rel_l2=before)
    document = check(*near, "--baseline", last, code=code)
    assert [f["parent"] for f in document["findings"]] == ["a"] * (code == 10)
    lax = place / "lax.toml"
    lax.write_text("[model]\nrel_l2 = 0.001\n[baseline]\ntolerance = 0.2\n")
    check("merged", "a", "b", "--policy", lax, "--baseline", last)


def test_what_is_worse_but_within_the_policy_passes(merged: Path, place: Path) -> None:
    last = release(place, "merged", "a", "b", rel_l2=1e-9)
    check("merged", "a", "b", "--policy", "far.toml", "--baseline", last)


def test_a_new_name_is_judged_by_the_policy(merged: Path, place: Path) -> None:
    policy = place / "p.toml"
    policy.write_text('[tensors."*"]\nrel_l2 = 0.001\n')
    line = ("merged", "a", "--policy", str(policy))
    last = release(place, *line)
    check(*line, "--baseline", last)
    document = json.loads(last.read_text())
    document["tensors"] = [row for row in document["tensors"] if row["name"] != NORM]
    last.write_text(json.dumps(document))
    (finding,) = check(*line, "--baseline", last, code=10)["findings"]
    assert finding["name"] == NORM


def test_the_record_of_a_merge_is_a_baseline_and_parents_may_have_moved(
    merged: Path, place: Path
) -> None:
    last = merged / "clmerge/divergence.json"
    check("merged", "a", "b", "--policy", "near.toml", "--baseline", last)
    shutil.copytree(place / "a", place / "runs/2/a")
    shutil.copytree(place / "b", place / "runs/2/b")
    moved = ("merged", "runs/2/a", "runs/2/b", "--policy", "near.toml", "--baseline", last)
    check(*moved)  # by their place on the line
    check("merged", "runs/2/a", "--policy", "near.toml", "--baseline", last)  # by the worst
    worse = checkpoint(place / "worse", {n: t * 3 for n, t in weights(1).items()})
    check(worse, "runs/2/a", "runs/2/b", "--policy", "near.toml", "--baseline", last, code=10)


@pytest.mark.parametrize(
    "content", ["", "3", "{}", '{"format": "clmerge.divergence/1", "parents": 1}', "\udcff"]
)
def test_what_is_no_baseline_is_refused(place: Path, content: str) -> None:
    (place / "last.json").write_text(content, errors="surrogateescape")
    says = ("the baseline is no divergence.json of this version", "last.json")
    refused("check", "a", "b", "--baseline", "last.json", unchanged=place, says=says)
    says = ("the baseline cannot be read", "none.json")
    refused("check", "a", "b", "--baseline", "none.json", unchanged=place, says=says)


# streams


def test_json_is_pure_whatever_else_is_asked(merged: Path) -> None:
    result = process(
        *("check", "merged", "a", "b", "--json", "--policy", "near.toml"),
        *("--junit", "j.xml", "--markdown", "m.md"),
        cwd=merged.parent,
        GITHUB_ACTIONS="true",
    )
    assert result.code == 10
    assert result.document["verdict"]["lossy"] is True
    errors = [line for line in result.err.splitlines() if line.startswith("::error ")]
    assert len(errors) == 2


def test_output_through_a_pipe_is_plain(merged: Path) -> None:
    result = process("check", "merged", "a", "b", cwd=merged.parent, TERM="xterm-256color")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "layers, worst predicted_kl first" in result.out
    layers = result.out.split("layers, worst")[1].split("tensors, worst")[0].splitlines()[1:]
    assert sum("model.layers." in line for line in layers) == 2
    assert all(len(line.rstrip()) <= 80 for line in layers)
    ascii_only = process("diff", "merged", "a", cwd=merged.parent, PYTHONIOENCODING="ascii")
    assert ascii_only.code == 0
    assert "####" in ascii_only.out


def test_quiet_leaves_the_result(merged: Path) -> None:
    result = clmerge("check", "merged", "a", "-q")
    assert result.err == ""
    assert "verdict: ok" in result.out


def test_top_says_how_many_are_shown(merged: Path) -> None:
    told = clmerge("diff", "merged", "a", "--top", "1").out
    assert "and 3 more tensors (--top 4 shows all)" in told
    assert "tensors, worst" not in clmerge("diff", "merged", "a", "--top", "0").out


def test_a_terminal_of_eighty_columns_is_not_overrun(merged: Path) -> None:
    pty = pytest.importorskip("pty")
    long = "model.layers.0." + "very_long_module_name." * 6 + "weight"
    save(merged, {**weights(1), long: torch.ones(4)})
    save(merged.parent / "a", {**weights(2), long: torch.full((4,), 0.1)})
    here, there = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "mergekit_cl", "diff", "merged", "a", "-q"],
        stdout=there,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(there)
    text = b""
    with contextlib.suppress(OSError):  # how a terminal tells that its writer is gone
        while part := os.read(here, 4096):
            text += part
    os.close(here)
    assert running.wait() == 0
    lines = text.decode().replace("\r", "").splitlines()
    assert any("…" in line and line.rstrip().endswith("name.weight") for line in lines)
    assert all(len(line) <= 80 for line in lines if "█" in line)
    assert "\x1b[3" not in text.decode()
