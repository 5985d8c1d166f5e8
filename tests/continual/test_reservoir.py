from __future__ import annotations

import numpy as np
from buffers import filled, plain

from mergekit_cl.continual.buffer import Buffer
from mergekit_cl.continual.reservoir import distinct_seen, keyed

# Upper 0.1 % points of the chi-square distribution, from tables (Abramowitz and Stegun 26.8).
CHI_SQUARE_19 = 43.82
CHI_SQUARE_49 = 85.35


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_every_row_is_kept_equally_often_whenever_it_came() -> None:
    rows, capacity, seeds = 50, 10, 600
    arrivals = [plain(number) for number in range(rows)]
    place = {arrival[0].id: number for number, arrival in enumerate(arrivals)}
    counts = np.zeros(rows)
    for seed in range(seeds):
        for kept in filled(arrivals, capacity, seed=seed).rows():
            counts[place[kept.row.id]] += 1
    # Without replacement the counts vary less than a multinomial's, by the share that is left out.
    expected = seeds * capacity / rows
    assert chi_square(counts, expected) / (1 - capacity / rows) < CHI_SQUARE_49


def test_every_pair_is_kept_equally_often() -> None:
    rows, seeds = 5, 2000
    arrivals = [plain(number) for number in range(rows)]
    place = {arrival[0].id: number for number, arrival in enumerate(arrivals)}
    pairs: dict[tuple[int, ...], int] = {}
    for seed in range(seeds):
        found = tuple(sorted(place[kept.row.id] for kept in filled(arrivals, 2, seed=seed).rows()))
        pairs[found] = pairs.get(found, 0) + 1
    assert len(pairs) == 10
    assert (
        chi_square(np.array([*pairs.values()] + [0.0] * 10)[:10], seeds / 10) < 27.88
    )  # 9 degrees


def test_keys_are_uniform_and_differ_by_every_part() -> None:
    counts, _ = np.histogram(
        [keyed(0, "row", number) / 2**128 for number in range(20_000)], bins=20, range=(0, 1)
    )
    assert chi_square(counts, 1000) < CHI_SQUARE_19
    parts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1"), (0, "a", 1, "")]
    assert len({keyed(*one) for one in parts}) == len(parts)


def test_the_number_of_different_rows_is_exact_until_the_buffer_is_full_and_then_near() -> None:
    buffer = Buffer(400)
    for number in range(300):
        buffer.add(*plain(number))
        buffer.add(*plain(number))
    assert (buffer.describe().distinct, buffer.seen) == (300, 600)
    for number in range(300, 10_000):
        buffer.add(*plain(number))
    distinct = buffer.describe().distinct
    assert distinct is not None
    assert abs(distinct / 10_000 - 1) < 4 / np.sqrt(398)


def test_the_estimate_of_different_rows_has_no_bias() -> None:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(500):
        keys = sorted(int(u * 2**128) for u in draw.uniform(size=200))[:30]
        found.append(distinct_seen(keys, 30))
    assert abs(np.mean(found) - 200) < 4 * np.std(found) / np.sqrt(len(found))
