"""What EWC does to weights or gradients, in one pass: continual/ewc.py and continual/proximal.py.

The same float32 operations in the same order as there, each rounded on its own: the same bits, but
for roots, of which torch's are not always the nearest float32.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import narrow, widen


def pull(theta, fisher, anchor, gradient, strength, count):
    """gradient += strength F (theta - anchor)."""
    for i in range(count):
        moved = (widen(theta[i]) - widen(anchor[i])) * widen(fisher[i]) * strength
        gradient[i] = narrow(widen(gradient[i]) + moved, gradient[i])
    return 0


def settle(theta, fisher, anchor, factor, count):
    """theta -= (theta - anchor) s / (1 + s), s = factor F."""
    one = np.float32(1.0)
    for i in range(count):
        share = one / (one / (widen(fisher[i]) * factor) + one)
        now = widen(theta[i])
        theta[i] = narrow(now - (now - widen(anchor[i])) * share, theta[i])
    return 0


def settle_by_moment(theta, fisher, anchor, moment, factor, correction, eps, count):
    """The same with s = factor F / (sqrt(moment / correction) + eps)."""
    one = np.float32(1.0)
    for i in range(count):
        scale = np.sqrt(widen(moment[i]) / correction) + eps
        share = one / (scale / (widen(fisher[i]) * factor) + one)
        now = widen(theta[i])
        theta[i] = narrow(now - (now - widen(anchor[i])) * share, theta[i])
    return 0
