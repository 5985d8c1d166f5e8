from __future__ import annotations

import pytest

from mergekit_cl.decide.worse import is_worse


@pytest.mark.parametrize(
    ("metric", "value", "before", "worse"),
    [
        ("rel_l2", 0.105, 0.1, False),
        ("rel_l2", 0.106, 0.1, True),
        ("rel_l2", 0.05, 0.1, False),
        ("rel_l2", 1e-6, 0.0, True),
        ("rel_l2", 0.0, 0.0, False),
        ("survival", 0.4, 0.5, True),
        ("survival", 0.48, 0.5, False),
        ("survival", 0.6, 0.5, False),
        ("survival", -0.2, -0.1, True),
        ("cosine", 0.99, 0.999, True),  # ten times as far, not 1 % less
        ("cosine", 0.999, 0.99, False),
        ("cosine", 1.0 - 1e-15, 1.0, False),
        ("loss_rise", -0.1, -0.2, True),
        ("missing", 1.0, 0.0, True),
    ],
)
def test_worse_is_by_more_than_the_tolerance_to_the_lossy_side(
    metric: str, value: float, before: float, worse: bool
) -> None:
    assert is_worse(metric, value, before, 0.05) is worse
