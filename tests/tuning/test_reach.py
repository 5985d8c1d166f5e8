"""What is held back is told with its strength, its unit, and what is not held back."""

from __future__ import annotations

from typing import Any

from mergekit_cl.continual.coverage import Coverage
from mergekit_cl.tuning.reach import describe_protection, protection_lines

MC = [("mc", "per_example")]


def reached(**values: Any) -> Coverage:
    whole: dict[str, Any] = {
        "protected": ("a", "b"),
        "unprotected": (),
        "frozen": (),
        "absent": (),
        "grown": {},
        "mass": 3.0,
        "share": 1.0,
    }
    return Coverage(**{**whole, **values})


def test_strength_and_unit_are_told_and_nothing_else_where_all_is_held_back() -> None:
    assert list(protection_lines(reached(), 10.0, MC)) == [
        "100.0% of the Fisher of earlier tasks is held back",
        "lambda 10, in the unit of that Fisher (mc, per example)",
    ]


def test_what_is_not_held_back_is_told_by_name() -> None:
    found = reached(
        unprotected=("new.head",), frozen=tuple("wxyz"), absent=("old",), grown={"embed": 3}
    )
    assert list(protection_lines(found, 10.0, MC))[2:] == [
        "trained without a Fisher, so not held back: new.head",
        "in the Fisher, but frozen: w, x, y and 1 more",
        "in the Fisher, but no parameter: old",
        "grown, new rows not held back: embed",
    ]


def test_a_share_near_nothing_and_mixed_units_are_warnings() -> None:
    _, _, little, mixed = protection_lines(
        reached(share=0.01), 10.0, [("exact", "per_example"), *MC]
    )
    assert little.startswith("warning: most of what earlier tasks need")
    assert mixed.startswith("warning: one lambda cannot mean the same")
    assert not [x for x in protection_lines(reached(share=0.05), 1.0, MC) if "warning" in x]


def test_the_log_has_lambda_as_a_number_with_estimator_and_unit() -> None:
    said = describe_protection(reached(unprotected=("new",)), 10.0, MC)
    assert said["lambda"] == 10.0
    assert said["fisher"] == [{"estimator": "mc", "unit": "per_example"}]
    assert (said["protected"], said["unprotected"], said["share"]) == (2, ["new"], 1.0)
