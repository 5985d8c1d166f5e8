"""What makes a merge lossy: a table of model-level values and what is said of them."""

from __future__ import annotations

import pytest

from mergekit_cl.divergence.metrics import NAMES
from mergekit_cl.divergence.verdict import ParentMetrics, judge


def parent(
    survival: float | None = None, loss: float | None = None, name: str = "A", **more: float
) -> ParentMetrics:
    known: dict[str, float | None] = {**dict.fromkeys(NAMES), "survival": survival, **more}
    return ParentMetrics(name, known, loss)


@pytest.mark.parametrize(
    ("survival", "loss", "lossy"),
    [
        (None, None, False),
        (1.0, None, False),
        (0.5, None, False),  # below, not at
        (0.49, None, True),
        (0.0, None, True),
        (-0.2, None, True),
        (None, 0.0, False),
        (None, 0.02, False),  # above, not at
        (None, 0.021, True),
        (1.0, 5.0, True),
        (0.1, 0.0, True),
    ],
)
def test_the_default_thresholds(survival: float | None, loss: float | None, lossy: bool) -> None:
    verdict = judge([parent(survival, loss)])
    assert verdict.lossy is lossy
    assert bool(verdict.reasons) is lossy
    assert bool(verdict.advice) is lossy


def test_a_rounding_error_alone_is_no_verdict() -> None:
    # A bf16 merge after a short fine-tune has 0.6 to 0.8 of it.
    assert not judge([parent(0.9, rounding_error=0.8, rel_l2=3.0, predicted_kl=99.0)]).lossy


def test_one_lossy_parent_is_enough_and_is_named() -> None:
    verdict = judge([parent(0.9, name="good"), parent(0.1, name="bad")])
    assert verdict.lossy
    assert len(verdict.reasons) == 1
    assert "bad" in verdict.reasons[0]
    assert "10%" in verdict.reasons[0]


def test_every_reason_is_told_and_advice_only_once() -> None:
    verdict = judge([parent(0.1, 0.5, "A"), parent(0.2, 0.5, "B")])
    assert len(verdict.reasons) == 4
    assert len(verdict.advice) == 3


def test_the_advice_for_lost_updates_is_float32() -> None:
    assert "float32" in judge([parent(0.1)]).advice[0]


def test_no_parents_are_no_loss() -> None:
    assert not judge([]).lossy
