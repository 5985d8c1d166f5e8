"""What practitioners learned the hard way is said where it applies, and not elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_cl.tuning.advice import Facts, advice, notes
from mergekit_cl.tuning.schema import Config

ONE = [{"name": "a", "data": ["/a"]}]
TWO = [*ONE, {"name": "b", "data": ["/b"]}]
PROTECTED = {"lambda": "auto", "sidecars": ["/f"], "anchors": ["/m"]}
WELL = Facts((1000, 1000), 5000, 0, {"a": 900, "b": 900}, calibrations=(1.5,))


def said(tasks: Any = TWO, facts: Facts = WELL, **sections: Any) -> list[str]:
    content = {"model": "/m", "task": tasks, **sections}
    return advice(Config.model_validate(content), facts)


def changed(**values: Any) -> Facts:
    return Facts(**{**vars_of(WELL), **values})


def vars_of(facts: Facts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__dataclass_fields__}


@pytest.mark.parametrize(
    ("part", "sections", "facts"),
    [
        ("nothing holds forgetting back", {}, WELL),
        ("a guess until it is tuned", {"ewc": {"lambda": 10.0}}, WELL),
        ("kept no Fisher of its tasks", {"ewc": PROTECTED}, changed(goes_on=True)),
        ("is not calibrated", {"ewc": PROTECTED}, changed(calibrations=(None,))),
        ("rose 35 times as much", {"ewc": PROTECTED}, changed(calibrations=(35.0,))),
        (
            "explicit step diverges",
            {
                "ewc": {**PROTECTED, "lambda": 100.0},
                "optimizer": {"name": "sgd", "learning_rate": 0.1},
            },
            changed(largest=0.5),
        ),
        (
            "different classes and nothing is replayed",
            {"ewc": PROTECTED},
            changed(classes=(frozenset("01"), frozenset("23"))),
        ),
        ("drift out of the buffer", {"replay": {}}, changed(classes=(frozenset("01"),) * 2)),
        ("learns it by heart", {"replay": {"rows": 10}}, WELL),
        ("fewer than 500 held-out rows decide nothing", {"gate": {}}, changed(validation={"a": 9})),
        ("no held-out rows for b", {"replay": {}}, changed(validation={"a": 900})),
        ("above 16 adapters forget more", {"lora": {"rank": 32}}, WELL),
        ("longer than the run's", {"ema": {"half_life": 3000.0}}, WELL),
        ("nothing is watched", {"drift": {"calibration": 2000}}, WELL),
        ("false alarms may come as often", {"drift": {"arl": 5000}}, WELL),
        ("are cut at 512 tokens", {"replay": {}}, changed(cut=600)),
        ("7 of 5007 rows are left out", {"replay": {}}, changed(dropped=7)),
        ("small updates are lost", {"replay": {}}, changed(stored=frozenset({"BF16"}))),
    ],
)
def test_it_is_said_where_it_applies(part: str, sections: dict[str, Any], facts: Facts) -> None:
    assert len([one for one in said(facts=facts, **sections) if part in one]) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"ewc": PROTECTED},
        {"replay": {"rows": 400}},
        {"gate": {}},
        {"ewc": PROTECTED, "lora": {"rank": 16}, "ema": {}, "drift": {}},
    ],
)
def test_a_config_without_a_trap_gets_no_advice(sections: dict[str, Any]) -> None:
    assert said(**sections) == []


def test_one_task_without_a_sidecar_has_nothing_to_protect() -> None:
    (only,) = said(ONE, changed(steps=(1000,)), ewc={"lambda": 10.0})
    assert "[ewc] protects nothing" in only


def test_how_far_off_a_diagonal_was_is_told_wherever_it_is_known() -> None:
    def noted(tasks: Any, calibrations: tuple[float | None, ...]) -> list[str]:
        content = {"model": "/m", "task": tasks, "ewc": PROTECTED}
        return notes(Config.model_validate(content), changed(calibrations=calibrations))

    near, far, unknown = (noted(ONE, (one,)) for one in (1.5, 35.0, None))
    assert len(near) == 1
    assert "rose 1.5 times as much" in near[0]
    assert far == unknown == []  # those are warnings
    assert "takes of its own tasks is not calibrated" in noted(TWO, (1.5,))[-1]
    assert notes(Config.model_validate({"model": "/m", "task": TWO}), WELL) == []


def test_the_same_classes_in_every_task_need_no_replay() -> None:
    alike = changed(classes=(frozenset("01"),) * 2)
    assert not [one for one in said(facts=alike, ewc=PROTECTED) if "classes" in one]
