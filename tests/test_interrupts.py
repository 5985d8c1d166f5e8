"""Signals wait for the end of a step; a launcher's echo of one is not a second one."""

from __future__ import annotations

import os
import signal

import pytest

import mergekit_cl.interrupts
from mergekit_cl.errors import Interrupted
from mergekit_cl.interrupts import deferred_interrupts, interrupting


def test_a_signal_and_its_echo_wait_for_the_end_of_the_step() -> None:
    with deferred_interrupts() as caught:
        assert caught() is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught() == signal.SIGINT


def test_a_second_signal_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergekit_cl.interrupts, "ECHO", -1.0)
    with deferred_interrupts() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as raised:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (caught(), raised.value.signal_number) == (signal.SIGINT, signal.SIGTERM)


def test_a_handler_raises_once_for_a_signal_and_its_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = interrupting(hint="again")
    with pytest.raises(Interrupted) as raised:
        interrupt(signal.SIGTERM, None)
    assert (raised.value.exit_code, raised.value.hint) == (143, "again")
    interrupt(signal.SIGTERM, None)
    monkeypatch.setattr(mergekit_cl.interrupts, "ECHO", -1.0)
    with pytest.raises(Interrupted):
        interrupt(signal.SIGTERM, None)
