"""Faults at a place in the code that no other process can hit: a rank has them from its start."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from roots.checkpoint.folders import CHECKPOINTS_FOLDER
from roots.training.callbacks.peak import Peak


@dataclass(frozen=True)
class Armed:
    """A fault of `rank`, in step `step` where it is one of a step; `delay`: seconds it waits.

    moment: of time.monotonic(), which all processes of a machine share; before it nothing happens,
    and steps count from there.
    """

    place: str
    rank: int
    step: int
    delay: float = 0.0
    moment: float = 0.0

    @property
    def due(self) -> bool:
        """Whether its moment has come."""
        return time.monotonic() >= self.moment


@contextmanager
def armed(fault: Armed | None, rank: int) -> Iterator[None]:
    """Within it this rank has `fault`, if it is this rank's."""
    # Measuring the processor would take longer than the run.
    with patch("roots.training.assemble.device_peak", return_value=Peak(1e12, "assumed")):
        if fault is None or rank != fault.rank:
            yield
            return
        with _PLACES[fault.place](fault):
            yield


@contextmanager
def device_time(seconds: float) -> Iterator[None]:
    """Within it every step waits for so long, as for a device that computes it.

    A stand-in: what a large model takes on GPUs leaves the processor to saves, as here.
    """
    if not seconds:
        yield
        return

    def wait(*arguments: Any) -> None:
        threading.Event().wait(seconds)

    with _around_method("roots.training.engine.step", "Engine", "train_step", wait):
        yield


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after(seconds: float) -> None:
    threading.Timer(seconds, _die).start()


def _around(target: str, before: Callable[..., None], after: Callable[..., None]) -> Any:
    """A patch of `target` that calls `before` and `after` with its arguments."""
    module, name = target.rsplit(".", 1)
    original = getattr(_imported(module), name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        result = original(*arguments, **named)
        after(*arguments, **named)
        return result

    return patch(target, replaced)


def _imported(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


def _while_it_writes(fault: Armed) -> Any:
    return _around("roots.training.saving.write_part", _soon(fault), _nothing)


def _soon(fault: Armed) -> Callable[..., None]:
    """Has this process die by the fault's delay after it is called, once the fault is due."""

    def die(*arguments: Any, **named: Any) -> None:
        if fault.due:
            _die_after(fault.delay)

    return die


def _if_shared(fault: Armed) -> Callable[[Path], None]:
    def die(folder: Path) -> None:
        if fault.due and folder.parent.name == CHECKPOINTS_FOLDER:
            _die()

    return die


def _before_the_rename(fault: Armed) -> Any:
    return _around("roots.checkpoint.folders.publish_folder", _if_shared(fault), _nothing)


def _after_the_rename(fault: Armed) -> Any:
    return _around("roots.checkpoint.folders.publish_folder", _nothing, _if_shared(fault))


def _in_a_local_copy(fault: Armed) -> Any:
    return _around("roots.training.local_copies.copy_entries", _soon(fault), _nothing)


def _at_step(fault: Armed, action: Callable[[Any], None]) -> Any:
    """`action(engine)` before the step of that number, once."""
    struck = []

    def before(engine: Any, *arguments: Any) -> None:
        if not fault.due:
            return
        struck.append(None)
        if len(struck) == fault.step:
            action(engine)

    return _around_method("roots.training.engine.step", "Engine", "train_step", before)


def _around_method(module: str, kind: str, name: str, before: Callable[..., None]) -> Any:
    owner = getattr(_imported(module), kind)
    original = getattr(owner, name)

    def replaced(self: Any, *arguments: Any) -> Any:
        before(self, *arguments)
        return original(self, *arguments)

    return patch.object(owner, name, replaced)


def _bad_gradient(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """The next gradient of the first parameter is changed by `change`, once."""

    def action(engine: Any) -> None:
        parameter = next(iter(engine.module.parameters()))

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return change(gradient.clone())

        handle = parameter.register_hook(hook)

    return action


def _nan(gradient: torch.Tensor) -> torch.Tensor:
    gradient.view(-1)[0] = float("nan")
    return gradient


def _one_bit(fault: Armed) -> Any:
    """One bit of a gradient that is computed twice is another one of these times."""
    replay = _imported("roots.training.anomalies.replay")
    original, calls = replay._gradients, []

    def gradients(*arguments: Any) -> list[torch.Tensor]:
        if fault.due:
            calls.append(None)
        found: list[torch.Tensor] = original(*arguments)
        if len(calls) == 2 * fault.step - 1:
            found[0].view(-1)[:1].view(torch.int16).bitwise_xor_(1 << 6)
        return found

    return patch.object(replay, "_gradients", gradients)


def _sleeps_in_its_data(fault: Armed) -> Any:
    advanced = []

    def before(self: Any, *arguments: Any) -> None:
        if fault.due:
            advanced.append(None)
        if len(advanced) == fault.step:
            threading.Event().wait()

    return _around_method("roots.training.stopping", "Feed", "advance", before)


def _slow(fault: Armed) -> Any:
    slowed = []

    def wait(*arguments: Any) -> None:
        threading.Event().wait(fault.delay)

    def before(engine: Any, *arguments: Any) -> None:
        if fault.due and not slowed:
            slowed.append(next(engine.module.children()).register_forward_pre_hook(wait))

    return _around_method("roots.training.engine.step", "Engine", "train_step", before)


_PLACES: dict[str, Callable[[Armed], Any]] = {
    "while it writes": _while_it_writes,
    "before the rename": _before_the_rename,
    "after the rename": _after_the_rename,
    "in a local copy": _in_a_local_copy,
    "nan": lambda fault: _at_step(fault, _bad_gradient(_nan)),
    "one bit": _one_bit,
    "sleeps in its data": _sleeps_in_its_data,
    "slow": _slow,
}
