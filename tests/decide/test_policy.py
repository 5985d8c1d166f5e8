from __future__ import annotations

from typing import Any

import pytest

from mergekit_cl.decide.policy import DEFAULT, is_broken, parse_policy
from mergekit_cl.divergence.metrics import NAMES
from mergekit_cl.divergence.verdict import ParentMetrics, TensorMetrics, judge
from mergekit_cl.errors import OptionError

UNDEFINED: dict[str, float | None] = dict.fromkeys(NAMES)


def parent(**metrics: float) -> ParentMetrics:
    return ParentMetrics("A", {**UNDEFINED, **metrics}, metrics.pop("predicted_loss", None))


def tensor(name: str, **metrics: float) -> TensorMetrics:
    return TensorMetrics(name, "A", {**UNDEFINED, **metrics})


@pytest.mark.parametrize(
    ("metric", "value", "broken"),
    [
        ("survival", 0.4, True),
        ("survival", 0.5, False),
        ("cosine", 0.4, True),
        ("rel_l2", 0.6, True),
        ("rel_l2", 0.5, False),
        ("max_abs", None, False),
    ],
)
def test_likeness_is_lossy_below_and_distance_above(
    metric: str, value: float | None, broken: bool
) -> None:
    assert is_broken(metric, value, 0.5) is broken


def test_a_policy_replaces_the_default_thresholds() -> None:
    lax = parse_policy({"model": {"survival": 0.1}}, "p.toml")
    assert judge([parent(survival=0.3)]).lossy
    assert not judge([parent(survival=0.3)], policy=lax).lossy
    strict = parse_policy({"model": {"rel_l2": 0.01}}, "p.toml")
    verdict = judge([parent(rel_l2=0.02)], policy=strict)
    assert verdict.reasons == ("rel_l2 0.02 from A (above 0.01)",)


def test_a_pattern_holds_the_tensors_it_matches_and_later_patterns_win() -> None:
    policy = parse_policy({"tensors": {"*": {"rel_l2": 0.1}, "*norm*": {"rel_l2": 0.5}}}, "p.toml")
    assert judge([], [tensor("a.norm", rel_l2=0.3)], policy=policy).reasons == ()
    (reason,) = judge([], [tensor("a.mlp", rel_l2=0.3)], policy=policy).reasons
    assert reason == "a.mlp: rel_l2 0.3 from A (above 0.1)"


def test_many_broken_tensors_are_counted_not_listed() -> None:
    policy = parse_policy({"tensors": {"*": {"rel_l2": 0.1}}}, "p.toml")
    verdict = judge([], [tensor(str(k), rel_l2=1.0) for k in range(20)], policy=policy)
    assert len(verdict.reasons) == 6
    assert verdict.reasons[-1] == "and 15 more tensors break their thresholds"


def test_carried_residuals_excuse_rounding_and_nothing_else() -> None:
    policy = parse_policy({"model": {"survival": 0.5, "rel_l2": 0.1}}, "p.toml")
    verdict = judge([parent(survival=0.1, rel_l2=0.2)], policy=policy, carried=True)
    assert verdict.reasons == ("rel_l2 0.2 from A (above 0.1)",)


def test_the_default_is_what_the_contract_says() -> None:
    assert DEFAULT.to_json() == {
        "model": {"survival": 0.5, "predicted_loss": 0.02, "loss_rise": 0.02, "missing": 0.0},
        "layers": {},
        "tensors": {},
        "baseline": {"tolerance": 0.05},
    }


def test_layers_have_patterns_of_their_own() -> None:
    policy = parse_policy({"layers": {"*.0": {"survival": 0.9}}}, "p.toml")
    rows = [tensor("model.layers.0", survival=0.8), tensor("model.layers.1", survival=0.8)]
    (reason,) = judge([], (), rows, policy=policy).reasons
    assert reason.startswith("layer model.layers.0: rounding kept 80% of the update")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"loss_rise": 0.03}, "measured loss 0.030 nats per token above A's"),
        ({"missing": 2}, "2 tensors of A are missing"),
    ],
)
def test_a_measured_rise_and_missing_tensors_are_lossy(more: dict[str, Any], says: str) -> None:
    verdict = judge([ParentMetrics("A", UNDEFINED, None, **more)])
    assert says in verdict.reasons[0]
    assert verdict.advice
    assert not judge([ParentMetrics("A", UNDEFINED, None, loss_rise=0.02, missing=0)]).lossy


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"survivl": 0.5}}, "survivl", "survival"),
        ({"tensors": {"*": {"predicted_loss": 1}}}, "predicted_loss", "predicted_kl"),
        ({"layers": {"*": {"missing": 1}}}, "missing", None),
        ({"layer": {}}, "layer", "layers"),
        ({"baseline": {"tolerence": 1}}, "tolerence", "tolerance"),
        ({"baseline": {"tolerance": -1}}, "tolerance = -1", None),
        ({"baseline": {"tolerance": "1"}}, "tolerance = '1'", None),
        ({"baseline": 3}, "p.toml", None),
        ({"model": {"survival": "half"}}, "survival = 'half'", None),
        ({"model": {"survival": True}}, "survival = True", None),
        ({"model": {"survival": float("nan")}}, "survival = nan", None),
        ({"model": 3}, "[model]", None),
        ({"tensors": 3}, "p.toml", None),
    ],
)
def test_what_is_no_policy_is_a_usage_error_that_names_the_place(
    content: dict[str, Any], says: str, hint: str | None
) -> None:
    with pytest.raises(OptionError) as caught:
        parse_policy(content, "p.toml")
    assert says in (caught.value.detail or "")
    assert hint is None or caught.value.hint == hint
