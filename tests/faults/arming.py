"""Faults at a place in the code that no other process can hit: a rank has them from its start."""

from __future__ import annotations

import os
import signal
import threading
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
    """A fault of `rank`, in step `step` where it is one of a step; `delay`: seconds it waits."""

    place: str
    rank: int
    step: int
    delay: float = 0.0


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
    def before(*arguments: Any, **named: Any) -> None:
        _die_after(fault.delay)

    return _around("roots.training.saving.write_part", before, _nothing)


def _die_if_shared(folder: Path) -> None:
    if folder.parent.name == CHECKPOINTS_FOLDER:
        _die()


def _before_the_rename(fault: Armed) -> Any:
    return _around("roots.checkpoint.folders.publish_folder", _die_if_shared, _nothing)


def _after_the_rename(fault: Armed) -> Any:
    return _around("roots.checkpoint.folders.publish_folder", _nothing, _die_if_shared)


def _in_a_local_copy(fault: Armed) -> Any:
    def before(*arguments: Any, **named: Any) -> None:
        _die_after(fault.delay)

    return _around("roots.training.local_copies.copy_entries", before, _nothing)


def _at_step(fault: Armed, action: Callable[[Any], None]) -> Any:
    """`action(engine)` before the step of that number, once."""
    struck = []

    def before(engine: Any, *arguments: Any) -> None:
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
    """One bit of a gradient that is computed twice is another the first time."""
    replay = _imported("roots.training.anomalies.replay")
    original, calls = replay._gradients, []

    def gradients(*arguments: Any) -> list[torch.Tensor]:
        calls.append(None)
        found: list[torch.Tensor] = original(*arguments)
        if len(calls) == 2 * fault.step - 1:
            found[0].view(-1)[:1].view(torch.int16).bitwise_xor_(1 << 6)
        return found

    return patch.object(replay, "_gradients", gradients)


def _sleeps_in_its_data(fault: Armed) -> Any:
    advanced = []

    def before(self: Any, *arguments: Any) -> None:
        advanced.append(None)
        if len(advanced) == fault.step:
            threading.Event().wait()

    return _around_method("roots.training.stopping", "Feed", "advance", before)


def _slow(fault: Armed) -> Any:
    slowed = []

    def wait(*arguments: Any) -> None:
        threading.Event().wait(fault.delay)

    def before(engine: Any, *arguments: Any) -> None:
        if not slowed:
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
