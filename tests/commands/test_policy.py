from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.checkpoints import checkpoint
from tests.commands.running import clmerge
from tests.commands.trees import snapshot


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "a", 1)
    checkpoint(tmp_path / "b", 2)
    (tmp_path / "far.toml").write_text("[model]\nrel_l2 = 0.01\n")
    (tmp_path / "near.toml").write_text('[tensors."*norm*"]\nrel_l2 = 100.0\n')
    return tmp_path


def test_a_policy_decides_what_strict_refuses(place: Path) -> None:
    before = snapshot(place)
    refused = clmerge("linear-merge", "a", "b", "--policy", "far.toml", "--strict")
    assert refused.code == 10
    assert "rel_l2" in refused.err
    assert snapshot(place) == before
    assert clmerge("linear-merge", "a", "b", "--policy", "near.toml", "--strict").code == 0


def test_a_verdict_warns_without_strict_even_when_quiet(place: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--policy", "far.toml", "--quiet")
    assert result.code == 0
    assert result.err.startswith("warning: the merge is lossy")
    assert (place / "merged").is_dir()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the policy cannot be read"),
        ("survival = = 3", "the policy is not TOML"),
        ("[model]\nsurvivl = 0.5", "try: survival"),
    ],
)
def test_a_bad_policy_is_a_usage_error_and_changes_nothing(
    place: Path, content: str | None, says: str
) -> None:
    if content is not None:
        (place / "bad.toml").write_text(content)
    before = snapshot(place)
    result = clmerge("linear-merge", "a", "b", "--policy", "bad.toml")
    assert result.code == 2
    assert says in result.err
    assert snapshot(place) == before
