"""Where lines may be written over, and where each is written once."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from roots.log import console_of


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        yield stream


def test_terminal_is_one_unless_a_launcher_passes_it_on(terminal: TextIO) -> None:
    assert console_of(terminal).is_terminal
    assert not console_of(terminal, forwarded=True).is_terminal


def test_terminal_that_knows_no_control_characters_is_none(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not console_of(terminal).is_terminal


def test_pipe_is_none_whatever_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        console = console_of(stream)
        assert (console.is_terminal, console.color_system) == (False, None)
