"""A signal ends what has started nothing yet, and all is as before afterwards."""

from __future__ import annotations

import signal

import pytest

from roots.launching.stop import STOP_SIGNALS, Stopped, held_signals, stopped_by_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_ends_the_block_once(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(Stopped, match=number.name):
        _stopped_twice(number)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def _stopped_twice(number: signal.Signals) -> None:
    with stopped_by_signals():
        try:
            signal.raise_signal(number)
        finally:
            # While what runs is ended, a further one changes nothing.
            signal.raise_signal(number)


def test_signal_waits_until_what_is_started_is_known() -> None:
    done: list[str] = []
    with pytest.raises(Stopped, match="SIGTERM"):
        _held(done)
    assert done == ["started"]


def _held(done: list[str]) -> None:
    with stopped_by_signals():
        with held_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("started")
        done.append("not here")


def test_ignored_signal_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
