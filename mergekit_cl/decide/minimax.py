"""Weights for which the worst of several quadratic losses is smallest."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

GAP = 1e-11
"""How far the worst loss may be above the smallest, relative to the largest loss there is."""
STEEPER = 8.0
NEWTON_STEPS = 60


def minimax_weights(forms: Array, constants: Array) -> Array:
    """Weights w >= 0 of sum 1 that minimise max_p (w^T Q_p w + c_p).

    forms: (P, K, K), symmetric and positive semidefinite. constants: (P,), 0 or more. Where many
    weights are equally good, it is a point in their middle: equal weights if nothing matters.

    A barrier method on: minimise t, w^T Q_p w + c_p <= t, w_k >= 0, sum w = 1. That is convex;
    Newton steps on `s t - sum_p log(t - f_p(w)) - sum_k log w_k` for growing s, each of which is
    within (P + K) / s of the smallest t (Boyd and Vandenberghe 2004, chapter 11).
    """
    parents, count, _ = forms.shape
    scale = float(max(np.abs(forms).max(), np.abs(constants).max(), 0.0))
    w = np.full(count, 1 / count)
    if scale == 0:
        return w
    q, c = forms / scale, constants / scale
    t = float(_losses(q, c, w).max()) + 1.0
    steepness = 1.0
    while (parents + count) / steepness > GAP:
        steepness *= STEEPER
        w, t = _centred(q, c, w, t, steepness)
    found: Array = w / w.sum()
    return found


def _centred(q: Array, c: Array, w: Array, t: float, steepness: float) -> tuple[Array, float]:
    """The point of least barrier for one steepness, by damped Newton steps from a feasible one."""
    count = len(w)
    for _ in range(NEWTON_STEPS):
        slack = t - _losses(q, c, w)
        slopes = 2 * q @ w
        gradient = np.append(
            (slopes / slack[:, None]).sum(0) - 1 / w, steepness - (1 / slack).sum()
        )
        hessian = np.zeros((count + 1, count + 1))
        rows = np.hstack([-slopes, np.ones((len(slack), 1))]) / slack[:, None]
        hessian += rows.T @ rows
        hessian[:count, :count] += (2 * q / slack[:, None, None]).sum(0) + np.diag(w**-2)
        # The weights keep their sum: one multiplier.
        kept = np.append(np.ones(count), 0.0)
        system = np.block([[hessian, kept[:, None]], [kept[None, :], np.zeros((1, 1))]])
        try:
            step = np.linalg.solve(system, np.append(-gradient, 0.0))[:-1]
        except np.linalg.LinAlgError:
            break
        decrement = float(-gradient @ step)
        if not decrement > 1e-12:
            break
        moved = _searched(q, c, w, t, steepness, step, decrement)
        if moved is None:
            break
        w, t = moved
    return w, t


def _searched(
    q: Array, c: Array, w: Array, t: float, steepness: float, step: Array, decrement: float
) -> tuple[Array, float] | None:
    """The point along a step that stays inside and lowers the barrier; None where none does."""
    here = _barrier(q, c, w, t, steepness)
    length = 1.0
    for _ in range(60):
        to, up = w + length * step[:-1], t + length * float(step[-1])
        if _barrier(q, c, to, up, steepness) < here - 0.01 * length * decrement:
            return to, up
        length /= 2
    return None


def _barrier(q: Array, c: Array, w: Array, t: float, steepness: float) -> float:
    slack = t - _losses(q, c, w)
    if w.min() <= 0 or slack.min() <= 0:
        return np.inf
    return float(steepness * t - np.log(slack).sum() - np.log(w).sum())


def _losses(q: Array, c: Array, w: Array) -> Array:
    found: Array = np.einsum("pkl,k,l->p", q, w, w) + c
    return found
