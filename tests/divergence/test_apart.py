"""Averages of models that are far apart are told of, those of tunes of one base are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_cl.divergence.apart import far_apart
from mergekit_cl.divergence.summary import Parent, summarise
from mergekit_cl.divergence.sums import Sums

Weights = NDArray[np.float64]
RANDOM = np.random.default_rng(0)
BASE = RANDOM.standard_normal(4000)


def told(parents: dict[str, Weights], merged: Weights) -> list[str]:
    sums = [
        Sums(
            count=merged.size,
            parent_square=float(one @ one),
            merged_square=float(merged @ merged),
            difference_square=float((merged - one) @ (merged - one)),
        )
        for one in parents.values()
    ]
    return far_apart(summarise({"w": sums}, [Parent(name) for name in parents]))


def unrelated() -> Weights:
    return RANDOM.standard_normal(BASE.size)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_models_that_were_trained_apart_are_told_of(count: int) -> None:
    parents = {f"p{k}": unrelated() for k in range(count)}
    (note,) = told(parents, np.mean(list(parents.values()), axis=0))
    assert "far apart" in note
    assert float(note.split("cosine ")[1].split()[0]) == pytest.approx(count**-0.5, abs=0.02)


@pytest.mark.parametrize("moved", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_tunes_of_one_base_are_not(moved: float, scale: float) -> None:
    parents = {f"p{k}": scale * (BASE + moved * unrelated()) for k in range(3)}
    assert told(parents, np.mean(list(parents.values()), axis=0)) == []


def test_a_moving_average_names_the_newcomer_that_does_not_belong_to_it() -> None:
    parents = {"state": BASE, "online": unrelated()}
    (note,) = told(parents, 0.999 * parents["state"] + 0.001 * parents["online"])
    assert "the merge and online" in note


def test_nothing_is_said_of_weights_that_are_all_zero() -> None:
    assert told({"a": BASE * 0, "b": BASE * 0}, BASE * 0) == []
