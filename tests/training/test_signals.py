"""Stop signals: remembered, not deadly, and the old handlers come back."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from roots.training.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_sets_the_flag_and_is_named(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert not stop.stop_requested()
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.stop_requested()
        assert stop.received == number.name
    assert stop.stop_requested()


def test_first_signal_is_the_one_reported() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert stop.received == "SIGUSR1"


def test_second_interrupt_falls_through() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"


def test_interrupt_after_another_signal_is_still_the_first_one() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.received == "SIGTERM"


def test_schedulers_may_repeat_themselves() -> None:
    with StopSignals() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)
    assert stop.stop_requested()


def test_signals_that_waited_for_handlers_are_let_through() -> None:
    """As under launch/rank.py, which blocks them until here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        signal.raise_signal(signal.SIGUSR1)
        with StopSignals() as stop:
            assert stop.received == "SIGUSR1"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_first_interrupt_says_what_a_second_does(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == ""
        signal.raise_signal(signal.SIGINT)
    line = "roots: saves and leaves after this step; a second interrupt ends at once"
    assert capfd.readouterr().err.split("\n") == ["", line, ""]


def interrupt_twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_old_handlers_come_back_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(KeyboardInterrupt), StopSignals():
        interrupt_twice()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_process_survives_and_chooses_its_exit_code() -> None:
    code = (
        "import os, signal, sys\n"
        "from roots.training.signals import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while not stop.stop_requested():\n"
        "        pass\n"
        "print(stop.received)\n"
        "sys.exit(3)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (3, "SIGTERM\n")
