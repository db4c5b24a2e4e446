"""What all tests share: which of them run where.

GPU tests are skipped, with the reason, where there is no GPU. Those marked every_layout repeat for
more layouts what others show for some; they run when asked for by `-m every_layout`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}


def pytest_configure() -> None:
    """Let every process of the tests run until it waits, unless its time is up, and hear signals.

    Ranks are more than processors. Else a thread of Gloo that is woken by a message takes the
    processor from the one that holds its lock, and asks for the lock until its own time is up: that
    was a third of what a rank took.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # A shell that starts the tests in the background has them ignored, and ROOTS leaves it so.
    for number, handler in _HANDLERS.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command or a run that a test calls in this process does to the log of `roots`."""
    logger = logging.getLogger("roots")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Search for no garbage while tests are collected, and later only in what came after that.

    What was imported and collected stays to the end, and each full search took half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "every_layout" not in config.option.markexpr:
        more = [item for item in items if item.get_closest_marker("every_layout")]
        config.hook.pytest_deselected(items=more)
        items[:] = [item for item in items if item not in more]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from roots.device import device_count

    if device_count() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none here"))
