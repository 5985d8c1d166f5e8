"""CUSUM: textbook run lengths, and a reference that stays."""

from __future__ import annotations

import numpy as np

from mergekit_cl.decide.cusum import Cusum
from mergekit_cl.decide.false_alarms import mean_time, records
from mergekit_cl.decide.two_sided import statistic_path


def test_run_lengths_are_those_of_the_textbook() -> None:
    # Montgomery, Introduction to Statistical Quality Control, k = 1/2: two-sided, h = 4 and 5,
    # 168 and 465 rows without a shift; 8.38 and 10.4 with a shift of one deviation.
    generator = np.random.default_rng(0)
    stable = records(statistic_path(generator.standard_normal((1500, 1200)), 0.5))
    shifted = records(statistic_path(1 + generator.standard_normal((3000, 100)), 0.5))
    for threshold, rows, delay in ((4.0, 168, 8.38), (5.0, 465, 10.4)):
        assert abs(mean_time(stable, 1200, threshold) / rows - 1) < 0.1
        assert abs(mean_time(shifted, 100, threshold) / delay - 1) < 0.03


def test_it_keeps_telling_while_the_level_is_off_the_reference() -> None:
    detector = Cusum(0.5, 4.0)
    alarms = [row for row in range(1, 31) if detector.update(1.5) is not None]
    assert alarms == [5, 10, 15, 20, 25, 30]
    assert all(detector.update(0.0) is None for _ in range(200))
    downwards = [detector.update(-1.5) for _ in range(5)]
    assert downwards[:4] == [None] * 4
    assert downwards[4] is not None
    assert (downwards[4].direction, downwards[4].rows) == ("down", 5)
