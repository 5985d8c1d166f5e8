"""How much of alpha each look at the same rows may use."""

from __future__ import annotations


def spend(alpha: float, look: int) -> float:
    """alpha / (look (look + 1)): the level of the look-th test, counted from 1.

    The sum over any number of looks stays below alpha, since 1/(1*2) + 1/(2*3) + ... = 1. Each look
    tests another candidate, chosen perhaps because of what earlier looks said, so nothing is known
    of how the tests depend on each other: bounds that gather evidence on one hypothesis (Pocock,
    O'Brien and Fleming) do not apply, the union bound does. How many looks there will be need not
    be known. Source: Tian and Ramdas 2021, Online control of the familywise error rate
    (alpha-spending); the idea of a spending function is that of Lan and DeMets 1983.
    """
    if look < 1:
        raise ValueError(f"looks are counted from 1, not {look}")
    return alpha / (look * (look + 1))
