"""As many rows of every class as there is room for.

The room is shared like water: every class gets the same number of rows, a class that has fewer
leaves the rest to the others, and a remainder goes to the classes whose hash is smallest. More rows
and more classes only ever lower a class's share, so rows that were dropped are never missed: the
result is a function of the set of rows alone. Within a class it is the reservoir's uniform sample.

Source: the greedy balancing of Prabhu et al. 2020 and the class-balancing reservoir of Chrysakis
and Moens 2020, made independent of the order of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from mergekit_cl.continual.reservoir import keyed


def losing_class(sizes: Mapping[str, int], seed: int) -> str:
    """The class that gives up a row when there is one too many: the largest.

    Of several, the one with the largest hash, so that the remainder stays where it is.
    """
    return max(sizes, key=lambda name: (sizes[name], _place(seed, name)))


def shares(counts: Mapping[str, int], capacity: int, seed: int) -> dict[str, int]:
    """How many rows each class keeps of `counts` different ones seen: what `losing_class` leads to.

    The level t is the largest with sum_c min(n_c, t) <= capacity.
    """
    if sum(counts.values()) <= capacity:
        return dict(counts)
    level = 0
    while sum(min(count, level + 1) for count in counts.values()) <= capacity:
        level += 1
    kept = {name: min(count, level) for name, count in counts.items()}
    above = sorted((n for n in counts if counts[n] > level), key=lambda n: _place(seed, n))
    for name in above[: capacity - sum(kept.values())]:
        kept[name] += 1
    return kept


@lru_cache(maxsize=4096)
def _place(seed: int, name: str) -> int:
    return keyed(seed, "class", name)
