"""Sums of tensors become rows of tensors, layers and the model, and one JSON document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mergekit_cl.divergence.metrics import NAMES, metrics
from mergekit_cl.divergence.summary import Parent, summarise, to_json, worst_layers
from mergekit_cl.divergence.sums import Sums


def sums(difference: float, **more: Any) -> Sums:
    known: dict[str, Any] = {
        "count": 10,
        "parent_square": 4.0,
        "merged_square": 4.0,
        "difference_square": difference,
        "largest": difference,
        "update_square": 1.0,
        "update_survived": 0.9,
        "fisher_square": difference,
        "fallback": 0,
        **more,
    }
    return Sums(**known)


A = Parent("a", tokens_per_example=10, calibration=3.0)
B = Parent("b")
MERGE = {
    "model.layers.0.up.weight": [sums(0.1), sums(0.4)],
    "model.layers.0.down.weight": [sums(0.3), sums(0.1)],
    "model.layers.1.up.weight": [sums(0.0), sums(0.9)],
    "lm_head.weight": [sums(0.2), sums(0.2, fisher_square=None)],
}


def test_a_layer_is_the_sum_of_its_tensors_and_the_model_of_all() -> None:
    found = summarise(MERGE, [A, B])
    assert [row.name for row in found.layers[:3]] == [
        "model.layers.0",
        "model.layers.1",
        "lm_head",
    ]
    layer = next(r for r in found.layers if (r.name, r.parent) == ("model.layers.0", "a"))
    assert layer.metrics == metrics(sums(0.1) + sums(0.3))
    whole = sums(0.1) + sums(0.3) + sums(0.0) + sums(0.2)
    assert found.model[0].metrics["rel_l2"] == pytest.approx((0.6 / 16) ** 0.5)
    assert found.model[0].metrics == metrics(whole)
    assert len(found.tensors) == 8


def test_predicted_loss_needs_a_calibration_and_is_per_token() -> None:
    found = summarise(MERGE, [A, B])
    # 3 * (1/2 * 0.6) nats per example, over 10 tokens each.
    assert found.model[0].predicted_loss == pytest.approx(3.0 * 0.3 / 10)
    assert found.model[1].predicted_loss is None
    without = summarise(MERGE, [Parent("a", tokens_per_example=10), B])
    assert without.model[0].predicted_loss is None


def test_the_worst_layers_come_once_each_by_their_worst_parent() -> None:
    found = worst_layers(summarise(MERGE, [A, B]), "rel_l2", 2)
    # (0.9 / 4, b), then (0.5 / 8, b) before (0.2 / 4, a).
    assert [(row.name, row.parent) for row in found] == [
        ("model.layers.1", "b"),
        ("model.layers.0", "b"),
    ]


def test_of_survival_the_smallest_is_the_worst() -> None:
    merge = {
        "x.layers.0.w": [sums(0.1, update_survived=0.9)],
        "x.layers.1.w": [sums(0.1, update_survived=0.2)],
    }
    (worst,) = worst_layers(summarise(merge, [A]), "survival", 1)
    assert worst.name == "x.layers.1"


def test_layers_without_the_metric_are_left_out() -> None:
    merge = {"x.layers.0.w": [sums(0.1, update_square=None)]}
    assert worst_layers(summarise(merge, [A]), "survival", 3) == []


def test_the_document_is_the_contracts() -> None:
    document = to_json(summarise(MERGE, [A, B]))
    assert document["format"] == "clmerge.divergence/1"
    assert document["parents"] == ["a", "b"]
    assert set(document["model"]) == {*NAMES, "predicted_loss"}
    assert document["model"]["predicted_loss"] == document["model_by_parent"][0]["predicted_loss"]
    # The model's value of a metric is that of the parent it is worst for.
    assert document["model"]["rel_l2"] == pytest.approx((1.6 / 16) ** 0.5)
    for row in document["tensors"]:
        assert set(row) == {"name", "parent", *NAMES}
    for row in document["layers"]:
        assert set(row) == {"layer", "parent", *NAMES}
    assert {"lossy", "reasons", "worst"} <= set(document["verdict"])
    json.dumps(document, allow_nan=False)


def test_a_merge_of_nothing_is_a_document_too() -> None:
    document = to_json(summarise({}, [A]))
    assert document["tensors"] == []
    assert document["verdict"]["lossy"] is False
