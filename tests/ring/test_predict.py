"""CPU or card, decided from numbers alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mergekit_cl.ring.predict import GAIN, Rates, Work, card_seconds, choose, cpu_seconds

# 10 GB read, 5 GB written, 2.5e9 elements, on 8 threads; rates of a present server.
WORK = Work(10 * 10**9, 5 * 10**9, 25 * 10**8, 8)
RATES = Rates(
    copied=10e9, hashed=4e9, cpu_merged=1e8, sent=50e9, fetched=50e9, card_merged=2e10, start=0.3
)


def test_the_times_are_those_of_the_slowest_part() -> None:
    # One thread: 15 GB hashed, 5 GB written; on the CPU 2.5e9 elements besides.
    host = 15 / 4 + 5 / 10
    assert cpu_seconds(WORK, RATES) == pytest.approx((host + 25) / 8)
    seconds, binding = card_seconds(WORK, RATES)
    assert seconds == pytest.approx(0.3 + (host + 10 / 10) / 8)
    assert binding == "the host's copies"
    assert card_seconds(WORK, replace(RATES, sent=1e9)) == (pytest.approx(10.3), "the bus")
    assert card_seconds(WORK, replace(RATES, fetched=1e9)) == (pytest.approx(5.3), "the bus")
    assert card_seconds(WORK, replace(RATES, card_merged=1e9)) == (pytest.approx(2.8), "the GPU")


def test_the_card_is_taken_where_arithmetic_binds_the_cpu() -> None:
    made = choose(WORK, RATES)
    assert made.device == "cuda"
    assert "3.7 s on the CPU, 0.96 s on the GPU, bound by the host's copies" in made.reason


@pytest.mark.parametrize(
    "changed",
    [
        {"cpu_merged": 2e9},  # a light kernel: reading and hashing bind both
        {"sent": 2e9},  # a slow bus
        {"card_merged": 3e8},  # a weak card
        {"start": 60.0},  # a small merge
    ],
    ids=str,
)
def test_the_cpu_stays_where_a_card_gains_too_little(changed: dict[str, float]) -> None:
    made = choose(WORK, replace(RATES, **changed))
    assert made.device == "cpu"
    assert "gains too little" in made.reason


def test_a_gain_must_exceed_what_a_rough_measurement_may_err() -> None:
    on_card, _ = card_seconds(WORK, RATES)
    host = 15 / 4 + 5 / 10

    def with_cpu_time(seconds: float) -> Rates:
        return replace(RATES, cpu_merged=WORK.merged / (seconds * WORK.threads - host))

    assert choose(WORK, with_cpu_time(1.01 * GAIN * on_card)).device == "cuda"
    assert choose(WORK, with_cpu_time(0.99 * GAIN * on_card)).device == "cpu"
