"""Where curves go besides metrics.jsonl: TensorBoard, and Weights & Biases when asked for.

All trackers take (step, {name: value}) with names like `train/loss`. A run that resumes from step k
repeats the steps it had logged after k; each tracker makes sure that they do not show up twice.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from roots.config import RunConfig
from roots.errors import RootsError, problem
from roots.files import cannot_write
from roots.log import get_logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_FOLDER = "tensorboard"
WANDB_STATE_FILE = "wandb.json"
FLUSH_SECONDS = 30

_LOGGER = get_logger("training.trackers")


class Tracker(Protocol):
    """Something that keeps curves.

    `name`: in messages; `errors`: what `log` and `close` raise when it cannot go on.
    """

    name: str
    errors: tuple[type[Exception], ...]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step; steps never decrease."""

    def close(self) -> None:
        """Write out what is pending. Nothing is logged afterwards."""


def build_trackers(
    config: RunConfig, run_directory: Path, rank: int, resume_step: int, new_course: bool = False
) -> list[Tracker]:
    """Open the trackers that `config.tracking` asks for; none on ranks other than global rank 0.

    `resume_step` is the step of the checkpoint that the run continues from, 0 for a new run;
    `new_course`: the steps after it come out otherwise than those reported before. Raises
    RootsError when a package is missing or Weights & Biases refuses.
    """
    trackers: list[Tracker] = []
    if rank != 0:
        return trackers
    if config.tracking.tensorboard:
        trackers.append(TensorBoardTracker(run_directory / TENSORBOARD_FOLDER, resume_step))
    if config.tracking.wandb:
        trackers.append(WandbTracker(config, run_directory, resume_step, new_course))
    return trackers


class TensorBoardTracker:
    """Writes TensorBoard events into `directory`; a resumed run appends a file to the earlier ones.

    The new file begins with a mark at which TensorBoard forgets every event of a later step. It is
    made when this start has made a step: before, it is not known whether these are given up.
    """

    def __init__(self, directory: Path, resume_step: int = 0) -> None:
        self.name = f"TensorBoard in {directory}"
        self.errors = (OSError,)
        self._directory = directory
        self._resume_step = resume_step
        self._make_writer = _summary_writer()
        self._writer: SummaryWriter | None = None
        self._early: list[tuple[int, Mapping[str, float]]] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(directory, error) from None
        self._hook = threading.excepthook
        threading.excepthook = self._except

    def _except(self, arguments: threading.ExceptHookArgs) -> None:
        """Keep TensorBoard's thread from printing a traceback: what it raised, `log` raises too."""
        if type(arguments.thread).__module__.startswith("tensorboard."):
            return
        self._hook(arguments)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._early.append((step, values))
        if step > self._resume_step or self._writer is not None:
            self._write()

    def close(self) -> None:
        try:
            if self._early:
                self._write()
            if self._writer is not None:
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _write(self) -> None:
        """Write what was logged, into a file that is made for the first of it."""
        if self._writer is None:
            # The mark hides its own step as well; a new run may have evaluated at step 0.
            purge_step = self._resume_step + 1 if self._resume_step > 0 else 0
            self._writer = self._make_writer(
                str(self._directory), purge_step=purge_step, flush_secs=FLUSH_SECONDS
            )
        for step, values in self._early:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._early.clear()


class WandbTracker:
    """Reports to Weights & Biases, online or into an offline folder for a later `wandb sync`.

    The run's id and the last step of every curve stand in `wandb.json` of the run directory: a
    resumed run continues under the same id and leaves out the steps that it had already reported
    (history there can only grow). Where a new course gives up steps already reported, it reports
    under a new id instead (`begun_anew`), which then lacks the steps up to `resume_step`. Values
    that are not finite are left out.
    """

    def __init__(
        self,
        config: RunConfig,
        run_directory: Path,
        resume_step: int = 0,
        new_course: bool = False,
    ) -> None:
        wandb = _wandb()
        self.name = "Weights & Biases"
        self.errors = (OSError, wandb.errors.Error)
        self._state_path = run_directory / WANDB_STATE_FILE
        self._resume_step = resume_step
        state = self._read_state() if resume_step > 0 else {}
        self.begun_anew = new_course and any(
            step > resume_step for step in state.get("last_steps", {}).values()
        )
        if self.begun_anew:
            _LOGGER.info("Weights & Biases: run %s keeps the course given up", state.get("id"))
            state = {}
        self._id = str(state.get("id") or secrets.token_hex(4))
        self._reported: dict[str, int] = dict(state.get("last_steps", {}))
        self._last_steps = dict(self._reported)
        run_directory.mkdir(parents=True, exist_ok=True)
        online = config.tracking.wandb_mode == "online"
        try:
            self._run = wandb.init(
                project=config.tracking.wandb_project,
                name=config.run.name,
                id=self._id,
                dir=str(run_directory),
                mode=config.tracking.wandb_mode,
                resume="allow" if online else None,
                config=config.model_dump(mode="json"),
                # Its capture of the console would break the live line.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            rule = f"Weights & Biases refused: {reason}"
            fix = "run `wandb login`, or set tracking.wandb_mode=offline"
            mode = config.tracking.wandb_mode
            raise RootsError(problem("tracking.wandb_mode", mode, rule, fix)) from error
        _LOGGER.info("Weights & Biases run %s, %s", self._id, config.tracking.wandb_mode)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        new = {
            name: value
            for name, value in values.items()
            if step > self._reported.get(name, -1) and math.isfinite(value)
        }
        if not new:
            return
        self._run.log(new, step=step)
        self._last_steps.update(dict.fromkeys(new, step))
        # A start that makes no step leaves the run that is reported as it is.
        if step > self._resume_step or self.begun_anew:
            self._write_state()

    def close(self) -> None:
        self._run.finish()

    def _read_state(self) -> dict[str, Any]:
        """The state left by the run that is resumed; empty if it did not report."""
        if not self._state_path.exists():
            return {}
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
        except ValueError:
            state = None
        if not isinstance(state, dict):
            rule = "is no JSON object with the id of the Weights & Biases run"
            fix = "delete it; the run then reports under a new id"
            raise RootsError(problem(str(self._state_path), None, rule, fix))
        return state

    def _write_state(self) -> None:
        temporary = self._state_path.with_name(self._state_path.name + ".tmp")
        state = {"id": self._id, "last_steps": self._last_steps}
        temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
        os.replace(temporary, self._state_path)


def _summary_writer() -> type[SummaryWriter]:
    """Import TensorBoard only where it is used: it costs a second."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        rule = "needs the package tensorboard, which cannot be imported here"
        fix = "pip install tensorboard, or set tracking.tensorboard=false"
        raise RootsError(problem("tracking.tensorboard", True, rule, fix)) from error
    return SummaryWriter


def _wandb() -> Any:
    """Import wandb only where it is asked for."""
    try:
        import wandb
    except ImportError as error:
        rule = "needs the package wandb, which cannot be imported here"
        fix = "pip install .[wandb], or set tracking.wandb=false"
        raise RootsError(problem("tracking.wandb", True, rule, fix)) from error
    return wandb
