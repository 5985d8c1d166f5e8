"""`judge`: several suites against several models as one verdict."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.decide.gate import compare
from mergekit_cl.decide.pairing import Rows
from mergekit_cl.errors import MismatchError, NonFiniteError
from mergekit_cl.gating.gate import judge
from mergekit_cl.training.loss import RowLosses

COUNT = 520


def losses(rise: float, seed: int = 0, suite: str = "a") -> RowLosses:
    """A model's losses: `rise` nats per token above a common course."""
    draw = np.random.default_rng(sum(map(ord, suite)))
    tokens = draw.integers(5, 50, COUNT)
    nats = tokens * (3 + rise + 0.05 * np.random.default_rng(seed).normal(size=COUNT))
    ids = tuple(f"{suite}{k}" for k in range(COUNT))
    return RowLosses(ids, tuple(nats), tuple(tokens.tolist()), None)


def suites(**rises: float) -> dict[str, RowLosses]:
    return {name: losses(rise, seed=len(name), suite=name) for name, rise in rises.items()}


def test_every_suite_is_judged_against_every_model() -> None:
    against = {"reference": suites(a=0.0, b=0.0), "anchor": suites(a=0.0, b=0.0)}
    found = judge(suites(a=0.0, b=0.0), against, draws=300)
    assert [(one.suite, one.against) for one in found.judged] == [
        ("a", "reference"),
        ("a", "anchor"),
        ("b", "reference"),
        ("b", "anchor"),
    ]
    assert found.decision == "accept"


def test_one_bad_suite_against_one_model_rejects() -> None:
    against = {"reference": suites(a=0.0, b=0.0), "anchor": suites(a=0.0, b=-0.5)}
    found = judge(suites(a=0.0, b=0.0), against, draws=300)
    assert found.decision == "reject"
    assert [one.comparison.decision for one in found.judged] == ["accept"] * 3 + ["reject"]


def test_a_comparison_is_that_of_the_suite_alone() -> None:
    new, old = losses(0.01, seed=1), losses(0.0, seed=2)
    found = judge({"a": new}, {"reference": {"a": old}}, draws=300, margin=0.03, alpha=0.1)
    plain = [
        Rows(one.ids, np.array(one.nats), np.array(one.tokens, dtype=np.int64))
        for one in (new, old)
    ]
    expected = compare(plain[0], plain[1], draws=300, margin=0.03, alpha=0.1)
    assert found.judged[0].comparison == expected


def test_each_look_at_a_suite_spends_its_part_of_alpha() -> None:
    against = {"reference": suites(a=0.0, b=0.0)}
    alone = judge(suites(a=0.0, b=0.0), against, draws=300)
    assert [(one.look, one.comparison.alpha) for one in alone.judged] == [(None, 0.05)] * 2
    third = judge(suites(a=0.0, b=0.0), against, draws=300, looks=3)
    assert [one.comparison.alpha for one in third.judged] == [0.05 / 12] * 2
    mixed = judge(suites(a=0.0, b=0.0), against, draws=300, looks={"a": 1, "b": 2})
    assert [one.comparison.alpha for one in mixed.judged] == [0.05 / 2, 0.05 / 6]


def test_errors_name_the_suite_and_the_model() -> None:
    with pytest.raises(MismatchError) as refused:
        judge(suites(a=0.0), {"anchor": {"a": losses(0.0, suite="z")}})
    assert "suite a, candidate and anchor: 1040 rows" in str(refused.value.detail)
    with pytest.raises(MismatchError, match="different suites") as refused:
        judge(suites(a=0.0), {"reference": suites(a=0.0, b=0.0)})
    assert "lacks b" in str(refused.value.detail)
    with pytest.raises(NonFiniteError) as broken:
        judge(suites(a=float("nan")), {"reference": suites(a=0.0)})
    assert "suite a" in str(broken.value.detail)
