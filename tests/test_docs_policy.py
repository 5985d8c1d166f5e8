"""docs/policy.md and what commands.md says of `diff` and `check` are true."""

from __future__ import annotations

from pathlib import Path

from mergekit_cl.decide.policy import DEFAULT, LOSSY_BELOW, METRICS, OF_THE_MODEL
from mergekit_cl.policyfile import read_policy
from tests.commands.checkpoints import checkpoint
from tests.commands.comparisons import check, diff
from tests.pages import DOCS, code_blocks, quoted, rows_of, section, table


def test_the_example_is_a_policy_with_the_default_thresholds(tmp_path: Path) -> None:
    example = code_blocks((DOCS / "policy.md").read_text())[0]
    (tmp_path / "p.toml").write_text(example)
    policy = read_policy(tmp_path / "p.toml")
    assert policy.model == DEFAULT.model
    assert policy.tolerance == DEFAULT.tolerance
    assert policy.layers
    assert policy.tensors


def test_every_metric_is_listed_with_its_lossy_side() -> None:
    text = (DOCS / "policy.md").read_text()
    rows = [row for row in rows_of(text) if len(row) == 3][2:]
    listed = {name: (side, of) for names, side, of in rows for name in quoted(names)}
    assert set(listed) == set(METRICS)
    for name, (side, of) in listed.items():
        assert side.startswith("below") is (name in LOSSY_BELOW), name
        assert (of == "the model") is (name in OF_THE_MODEL), name


def test_a_comparison_has_the_documented_keys(tmp_path: Path) -> None:
    cells = table(section("commands.md", "JSON on stdout"), "of")
    more, divergence = (
        cells["`diff`, `check`"],
        table(section("commands.md", "Files"), "`divergence.json`"),
    )
    keys = {key for cell in divergence for key in quoted(cell)}
    own = [key for key in quoted(more) if key.isidentifier()]
    a, b = checkpoint(tmp_path / "a", 1), checkpoint(tmp_path / "b", 2)
    for document in (diff(a, b), check(a, b)):
        assert set(document) == keys | set(own)
        (overlap,) = document["overlap"]
        shape = next(key for key in quoted(more) if key.startswith("[{parent"))
        assert {word.strip("[{} ]") for word in shape.split(",")} == set(overlap)
