"""Metrics against their definitions, None where a definition divides by nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.divergence.metrics import NAMES, metrics
from mergekit_cl.divergence.sums import SCRATCH_BUFFERS, Sums, block_sums


def measured(
    merged: torch.Tensor,
    exact: torch.Tensor | None,
    parent: torch.Tensor,
    fisher: torch.Tensor | None = None,
    fallback: int | None = None,
) -> dict[str, float | None]:
    scratch = [torch.empty(merged.numel(), dtype=torch.float64) for _ in range(SCRATCH_BUFFERS)]
    changed = int((merged != parent).sum())
    (sums,) = block_sums(merged, exact, [parent], [fisher], [changed], fallback, scratch)
    return metrics(sums)


def tuned(size: int, step: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A bf16 parent and an exact update whose norm is `step` of the parent's."""
    generator = torch.Generator().manual_seed(seed)
    parent = (torch.randn(size, generator=generator) * 0.02).bfloat16()
    update = torch.randn(size, generator=generator) * 0.02 * step
    return parent, parent.float() + update


def test_every_metric_is_its_definition() -> None:
    parent, exact = tuned(20_000, 0.01)
    merged = exact.bfloat16()
    fisher = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    found = measured(merged, exact, parent, fisher, fallback=50)
    m, x, p, f = (t.double().numpy() for t in (merged, exact, parent, fisher))
    d, e = x - p, m - p
    expected = {
        "rel_l2": np.linalg.norm(m - p) / np.linalg.norm(p),
        "cosine": m @ p / (np.linalg.norm(m) * np.linalg.norm(p)),
        "max_abs": np.abs(m - p).max(),
        "changed": (m != p).mean(),
        "survival": d @ e / (d @ d),
        "rounding_error": np.linalg.norm(e - d) / np.linalg.norm(d),
        "predicted_kl": 0.5 * (f * e * e).sum(),
        "fallback": 50 / 20_000,
    }
    assert found.pop("sign_conflict") is None
    assert set(found) == set(expected) == set(NAMES) - {"sign_conflict"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-9), name


@pytest.mark.parametrize(
    ("step", "unchanged", "survival"),
    [(1e-2, 0.18, 1.00), (3e-3, 0.49, 0.93), (1e-3, 0.78, 0.53)],
)
def test_bfloat16_loses_small_updates_as_measured(
    step: float, unchanged: float, survival: float
) -> None:
    # What most users never see: a small update is mostly rounded away.
    parent, exact = tuned(200_000, step)
    found = measured(exact.bfloat16(), exact, parent)
    assert found["changed"] is not None
    assert found["survival"] is not None
    assert 1 - found["changed"] == pytest.approx(unchanged, abs=0.03)
    assert found["survival"] == pytest.approx(survival, abs=0.03)


def test_a_merge_that_is_not_rounded_survives_whole() -> None:
    parent, exact = tuned(1000, 0.01)
    found = measured(exact, exact, parent)
    assert found["survival"] == pytest.approx(1, abs=1e-12)
    assert found["rounding_error"] == pytest.approx(0, abs=1e-6)


def test_an_update_that_rounding_undid_did_not_survive() -> None:
    parent, exact = tuned(1000, 1e-6)
    found = measured(parent, exact, parent)
    assert found["survival"] == 0
    assert found["rounding_error"] == 1
    assert found["changed"] == 0


def test_without_an_update_survival_is_undefined() -> None:
    parent, _ = tuned(100, 0.1)
    found = measured(parent, parent.float(), parent)
    assert found["survival"] is None
    assert found["rounding_error"] is None
    assert (found["rel_l2"], found["max_abs"], found["changed"]) == (0, 0, 0)
    assert found["cosine"] == pytest.approx(1)


def test_what_is_unknown_is_none() -> None:
    found = measured(torch.ones(3), None, torch.full((3,), 2.0))
    unknown = {"sign_conflict", "survival", "rounding_error", "predicted_kl", "fallback"}
    assert {name for name, value in found.items() if value is None} == unknown


def test_against_a_parent_of_zeros_only_absolute_numbers_are_defined() -> None:
    found = measured(torch.ones(4), torch.ones(4), torch.zeros(4), torch.ones(4), 0)
    assert found["rel_l2"] is None
    assert found["cosine"] is None
    assert (found["max_abs"], found["changed"], found["predicted_kl"]) == (1, 1, 2)


def test_of_no_entries_nothing_is_defined() -> None:
    assert set(metrics(Sums()).values()) == {None}


FISHER = Sums(count=6, changed=5, fisher_square=3.0)


def test_what_did_not_change_needs_no_fisher_to_be_predicted() -> None:
    whole = FISHER + Sums(count=4, changed=0)
    assert metrics(whole)["predicted_kl"] == 1.5
    assert whole.fisher_gap == (4, 0)


@pytest.mark.parametrize("order", [1, -1])
def test_a_change_nobody_measured_leaves_nothing_to_predict(order: int) -> None:
    one, two, three = [FISHER, Sums(count=4, changed=1), Sums(count=2, changed=2)][::order]
    assert metrics(one + two + three)["predicted_kl"] is None
    assert (one + two + three).fisher_gap == (6, 3)
    assert (one + (two + three)).fisher_gap == (6, 3)


def test_without_any_fisher_nothing_is_predicted_even_of_an_equal_model() -> None:
    assert metrics(Sums(count=4, changed=0))["predicted_kl"] is None


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3), min_size=1, max_size=10).filter(
        lambda rows: any(abs(p) > 1e-3 for _, _, p in rows)
    )
)
def test_no_metric_is_ever_nan_and_cosine_stays_in_range(
    rows: list[tuple[float, float, float]],
) -> None:
    merged, exact, parent = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = measured(merged, exact, parent, torch.ones(len(rows)), 0)
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert found["cosine"] is None or -1 <= found["cosine"] <= 1
