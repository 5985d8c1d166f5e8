"""From a stable period to a detector that raises false alarms as rarely as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.decide.adwin import EVERY, Adwin, adwin_path
from mergekit_cl.decide.autocorrelation import Memory, memory
from mergekit_cl.decide.block_bootstrap import resampled
from mergekit_cl.decide.cusum import Cusum
from mergekit_cl.decide.false_alarms import Records, records, threshold_for
from mergekit_cl.decide.histogram import Histogram
from mergekit_cl.decide.page_hinkley import PageHinkley, page_hinkley_path
from mergekit_cl.decide.two_sided import statistic_path
from mergekit_cl.drifting.watch import Calibration, Detector, DetectorName, Watch
from mergekit_cl.errors import DataError, NonFiniteError

DELTA = 0.5
"""Half the shift that is found fastest, in standard deviations of the stable period."""
FEWEST_ROWS = 50
FEWEST_INDEPENDENT = 50
"""Independent rows in a stable period that speaks for a time as long as itself."""
LONGER_BLOCKS = 2
"""Times the block length of least error: a mean time between alarms is exponential in what blocks
lose, so their bias weighs more here than in the variance that the rule is made for."""
LEAST_DEVIATION = 0.01
"""Of a resampled period, as a share of the stable period's."""
STREAMS = 400
AT_ONCE = 4_000_000
"""Values that are simulated at a time."""


def calibrate(
    values: Sequence[float] | NDArray[np.float64],
    arl: int,
    detector: DetectorName = "page-hinkley",
    *,
    delta: float = DELTA,
) -> Watch:
    """A watch that knows a stable period, with a false alarm every `arl` rows on average.

    values: the stable period, in order. The threshold is that at which streams without a change,
    made of the period's own blocks, alarm every `arl` rows. Each is standardised by another period
    made so, since mean and deviation are themselves known only so well; half of them begin with it
    behind them, half as a detector does after an alarm. The same values give the same threshold.
    Raises DataError or NonFiniteError for what is too short, constant or not finite;
    `supported_arl` of the calibration says what it can speak for.
    """
    stable = np.asarray(values, dtype=np.float64)
    _check(stable)
    found = memory(stable)
    block = min(LONGER_BLOCKS * found.block, len(stable) // 3) if found.block > 1 else 1
    streams = list(_without_change(stable, arl, detector, delta, block))
    mean, deviation = float(stable.mean()), float(stable.std())
    calibration = Calibration(
        detector=detector,
        arl=arl,
        rows=len(stable),
        mean=mean,
        standard_deviation=deviation,
        delta=None if detector == "adwin" else delta,
        threshold=threshold_for(streams, arl, arl),
        autocorrelation_time=found.time,
        block=block,
        supported_arl=supported(len(stable), found),
    )
    return Watch(calibration, _ready(calibration, (stable - mean) / deviation))


def supported(rows: int, found: Memory) -> int:
    """The longest mean time between false alarms that a stable period can speak for.

    What happens once in many rows has to have had room to happen once; in fewer than
    `FEWEST_INDEPENDENT` independent rows there was less room.
    """
    return int(rows * min(1.0, rows / found.time / FEWEST_INDEPENDENT))


def _check(stable: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(stable))
    if len(bad):
        raise NonFiniteError(
            "a value of the stable period is no finite number",
            detail=f"row {bad[0] + 1}: {stable[bad[0]]}",
        )
    if len(stable) < FEWEST_ROWS:
        raise DataError(
            "a stable period is too short to say anything",
            detail=f"{len(stable)} rows, at least {FEWEST_ROWS} are needed",
            hint="give as many rows as there shall be between two false alarms",
        )
    if not stable.std() > 1e-12 * np.abs(stable).max():
        raise DataError(
            "a stable period does not vary", detail=f"{len(stable)} rows of {stable[0]}"
        )


def _without_change(
    stable: NDArray[np.float64], arl: int, detector: DetectorName, delta: float, block: int
) -> Iterator[Records]:
    generator = np.random.default_rng(0)
    rows = len(stable)
    some = max(1, AT_ONCE // (rows + arl))
    begun = [(rows, STREAMS // 2), (0, STREAMS // 2)]  # as at the start, and as after an alarm
    for earlier, count in ((e, min(some, n - k)) for e, n in begun for k in range(0, n, some)):
        period = resampled(stable, count, rows, block, generator)
        mean, deviation = period.mean(axis=1, keepdims=True), period.std(axis=1, keepdims=True)
        # One that hardly varies would never have been calibrated on.
        deviation = np.maximum(deviation, LEAST_DEVIATION * stable.std())
        stream = (resampled(stable, count, arl, block, generator) - mean) / deviation
        if detector == "page-hinkley":
            yield from records(page_hinkley_path(stream, delta, earlier))
        elif detector == "cusum":
            yield from records(statistic_path(stream, delta))
        else:
            if earlier:
                stream = np.concatenate([(period - mean) / deviation, stream], axis=1)
            yield from records(adwin_path(stream, earlier, EVERY), EVERY)


def _ready(calibration: Calibration, standardised: NDArray[np.float64]) -> Detector:
    """The detector with the stable period behind it, as the simulated ones had theirs."""
    threshold, delta = calibration.threshold, calibration.delta
    if delta is None:
        window = Histogram()
        for value in standardised.tolist():
            window.add(value)
        return Adwin(threshold, window=window)
    if calibration.detector == "cusum":
        return Cusum(delta, threshold)
    return PageHinkley(delta, threshold, rows=calibration.rows)
