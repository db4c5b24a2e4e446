"""What a person sees of a run: one live line on a terminal, plain lines anywhere else.

Only global rank 0 shows it. Log lines of any logger appear above the live line instead of through
it; where stdout is a file or a pipe there is no control character at all. What stdout does not take
(a full disk, a reader that has left) is not shown, and the run goes on.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from roots.device import output_is_forwarded
from roots.log import console_of
from roots.training.callbacks.metrics import SaveRecord, StepRecord

# What a narrow terminal does without, the least important first.
_FIRST_TO_GO = ("lr", "mfu", "held-out", "speed")
_LARGE_SAVE_BYTES = 100_000_000


class Progress:
    """Shows records of a run of `total_steps`; use between `start` and `stop`.

    `log_every_steps` spaces the plain lines (the last step always has one); the live line follows
    every step. `clock` gives seconds.
    """

    def __init__(
        self,
        total_steps: int,
        log_every_steps: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._log_every_steps = log_every_steps
        if console is None:
            output = cast(TextIO, _Forgiving(sys.stdout))
            console = console_of(output, output_is_forwarded(), soft_wrap=True)
        self._console = console
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._evaluation = ""
        self._live: Live | None = None
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []

    def start(self) -> None:
        """Begin the live line, if there is a terminal to show it on."""
        if not self._console.is_terminal:
            return
        # Only refreshed when a step ends: a thread that redraws would take time from the step.
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        before = (sys.stdout, sys.stderr)
        self._live.start()
        self._move_log_handlers(before)

    def update(self, record: StepRecord) -> None:
        """Show one finished step."""
        if self._first is None:
            # The first step also warms up; time left counts from its end.
            self._first = (record.step, self._clock())
        parts = self._parts(record)
        if self._live is not None:
            line = _fitted(parts, self._console.width)
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif record.step % self._log_every_steps == 0 or record.step >= self._total_steps:
            self._console.print(_joined(parts))

    def show_evaluation(self, step: int, loss: float) -> None:
        """Show a held-out loss: a line of its own, and kept in the live line."""
        self._evaluation = f"held-out {loss:.4f}"
        self._console.print(f"step {step}/{self._total_steps}  held-out loss {loss:.4f}")

    def show_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Show the scores on tasks: a line for each."""
        for name, value in scores.items():
            self._console.print(f"step {step}/{self._total_steps}  {name} {value:.4f}")

    def show_checkpoint(self, path: Path, saved: SaveRecord) -> None:
        """Show where a checkpoint has been saved and, if it is large, what that took."""
        self._console.print(f"saved {path}{_cost(saved)}")

    def stop(self) -> None:
        """End the live line and leave the terminal and the loggers as they were."""
        if self._live is None:
            return
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved.clear()
        self._live.stop()
        self._live = None

    def _parts(self, record: StepRecord) -> dict[str, str]:
        """The parts of the one line about a step, by name, in their order."""
        reason = "spike" if record.anomaly == "spike" else "overflow"
        culprit = f" of {record.overflow}" if record.overflow else ""
        return {
            "step": f"step {record.step}/{self._total_steps}",
            "loss": f"loss {record.loss:.4f}",
            "held-out": self._evaluation,
            "lr": f"lr {record.lr:.3g}",
            "speed": f"{record.tokens_per_second:,.0f} tokens/s",
            "mfu": f"MFU {100 * record.mfu:.1f}%",
            "left": f"{self._time_left(record)} left",
            "skipped": f"skipped ({reason}{culprit})" if record.skipped else "",
        }

    def _time_left(self, record: StepRecord) -> str:
        """Remaining steps at the mean pace since the first one, evaluations and saving included."""
        assert self._first is not None
        first_step, first_time = self._first
        seconds = record.step_seconds
        if record.step > first_step:
            seconds = (self._clock() - first_time) / (record.step - first_step)
        return format_duration(seconds * max(0, self._total_steps - record.step))

    def _move_log_handlers(self, before: tuple[object, object]) -> None:
        """Point log handlers at the redirected streams: they hold the ones they were made with."""
        for handler in _stream_handlers():
            for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
                if handler.stream is old and new is not old:
                    self._moved.append((handler, old))
                    handler.setStream(new)
                    break


class _Forgiving:
    """A stream that loses what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _cost(saved: SaveRecord) -> str:
    """Size, rate and stall of a save; none of them is of interest where there is little to save."""
    if saved.bytes < _LARGE_SAVE_BYTES:
        return ""
    share = "" if saved.disk_share is None else f", {100 * saved.disk_share:.0f}% of the disk's"
    rate = f"{saved.gigabytes_per_second:.2f} GB/s{share}"
    return f" ({saved.bytes / 1e9:.1f} GB, {rate}, training waited {saved.stall_seconds:.1f} s)"


def _joined(parts: Mapping[str, str]) -> str:
    return "  ".join(part for part in parts.values() if part)


def _fitted(parts: Mapping[str, str], width: int) -> str:
    """The line without its least important parts, as far as `width` columns ask for that."""
    kept = dict(parts)
    for name in _FIRST_TO_GO:
        if len(_joined(kept)) <= width:
            break
        del kept[name]
    return _joined(kept)


def format_duration(seconds: float) -> str:
    """Write seconds as `42s`, `3m 05s`, `2h 07m` or `5d 03h`; `?` if that is not known."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Every handler of every logger that writes to a stream (files excepted)."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and not isinstance(
                    handler, logging.FileHandler
                ):
                    yield handler
