"""CPU or card: the predicted seconds of each, and which to take. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GAIN = 1.2
"""How much faster a card must be predicted to be: a measurement of milliseconds is rough."""


@dataclass(frozen=True)
class Work:
    """What a merge has to do. merged: elements that a kernel makes; threads: host threads."""

    bytes_read: int
    bytes_written: int
    merged: int
    threads: int


@dataclass(frozen=True)
class Rates:
    """What was measured, per second: of one host thread, or of the card.

    copied, hashed: bytes on the host. cpu_merged, card_merged: elements, kernel, checks and
    divergence included. sent, fetched: bytes over the bus. start: seconds to set up the ring.
    """

    copied: float
    hashed: float
    cpu_merged: float
    sent: float
    fetched: float
    card_merged: float
    start: float


@dataclass(frozen=True)
class Choice:
    """device: which is taken. reason: in words, for the person who asks why."""

    device: Literal["cpu", "cuda"]
    reason: str


def cpu_seconds(work: Work, rates: Rates) -> float:
    """Every thread hashes what it reads, merges, hashes and writes: the times add up."""
    return (_host(work, rates) + work.merged / rates.cpu_merged) / work.threads


def card_seconds(work: Work, rates: Rates) -> tuple[float, str]:
    """Host, bus and card work at once, so the slowest of them binds; and which that is.

    The host copies what it reads into pinned memory besides.
    """
    bounds = {
        "the host's copies": (_host(work, rates) + work.bytes_read / rates.copied) / work.threads,
        "the bus": max(work.bytes_read / rates.sent, work.bytes_written / rates.fetched),
        "the GPU": work.merged / rates.card_merged,
    }
    binding = max(bounds, key=lambda name: bounds[name])
    return rates.start + bounds[binding], binding


def choose(work: Work, rates: Rates) -> Choice:
    """The card where it is predicted to be `GAIN` times faster, else the CPU.

    The time of the disk is left out: both wait for it alike, so a merge it binds loses nothing
    by either choice.
    """
    on_cpu = cpu_seconds(work, rates)
    on_card, binding = card_seconds(work, rates)
    said = f"{on_cpu:.2g} s on the CPU, {on_card:.2g} s on the GPU, bound by {binding}"
    if on_cpu >= GAIN * on_card:
        return Choice("cuda", f"predicted from a measurement: {said}")
    return Choice("cpu", f"predicted from a measurement, a GPU gains too little: {said}")


def _host(work: Work, rates: Rates) -> float:
    """Seconds of one thread for what it does on either device; writing is a copy to the cache."""
    return (work.bytes_read + work.bytes_written) / rates.hashed + work.bytes_written / rates.copied
