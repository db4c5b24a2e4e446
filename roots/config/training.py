"""The sections on how a run trains: from `training` and `optimizer` to `checkpoint` and `stop`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from roots.config.section import Section

# The part of a run over which wsd decays unless told: a tenth.
WSD_DECAY_DIVISOR = 10

# What `stop.wall_clock` is besides a length: the end that Slurm tells its jobs.
UNTIL_SLURM_JOB_ENDS = "slurm"
_SECONDS = re.compile(r"\d+(\.\d+)?")
_CLOCK = re.compile(r"(?:(\d+)-([01]?\d|2[0-3])|(\d+)):([0-5]\d):([0-5]\d)")


class TrainingConfig(Section):
    """How long, with which batch and in which precision."""

    steps: int = Field(1000, gt=0, description="optimizer steps of the whole run")
    seed: int = Field(1234, ge=0, description="seed of weights, data order and dropout")
    precision: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="compute dtype")
    micro_batch_size: int = Field(8, gt=0, description="samples per forward pass on one replica")
    global_batch_size: int = Field(
        32, gt=0, description="samples per optimizer step, over all replicas"
    )
    gradient_clipping: float = Field(1.0, ge=0, description="largest global gradient norm; 0: off")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the label spread over the vocabulary, in training"
    )
    z_loss: float = Field(
        0.0, ge=0, description="weight of log(softmax denominator)^2 in the training loss"
    )


class OptimizerConfig(Section):
    """AdamW (Loshchilov, Hutter 2019)."""

    name: Literal["adamw"] = Field("adamw", description="the algorithm")
    implementation: Literal["auto", "deepspeed", "apex", "torch"] = Field(
        "auto", description="whose kernels; auto takes the fastest that works and says why"
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        0.1, ge=0, description="decay of matrices; none on biases and norms"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")


class ScheduleConfig(Section):
    """The learning rate over time, its lengths in steps or, where set, in tokens."""

    name: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = Field(
        "cosine", description="shape after the warmup"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warmup")
    warmup_tokens: int | None = Field(None, ge=0, description="the warmup in tokens instead")
    decay_steps: int | None = Field(
        None,
        gt=0,
        description="step at which the minimum is reached; wsd: length of the final decay; "
        "null: training.steps (wsd: a tenth of it)",
    )
    decay_tokens: int | None = Field(None, gt=0, description="decay_steps in tokens instead")
    min_learning_rate: float = Field(0.0, ge=0, description="where the decay ends")

    def warmup_in_steps(self, tokens_per_step: int) -> float:
        """The warmup in steps; one given in tokens may be fractional."""
        return _in_steps(self.warmup_steps, self.warmup_tokens, tokens_per_step)

    def decay_in_steps(self, total_steps: int, tokens_per_step: int) -> float:
        """Where the decay ends, of wsd how long it lasts, in a run of `total_steps`."""
        default = max(1, total_steps // WSD_DECAY_DIVISOR) if self.name == "wsd" else total_steps
        return _in_steps(self.decay_steps or default, self.decay_tokens, tokens_per_step)


def _in_steps(steps: int, tokens: int | None, tokens_per_step: int) -> float:
    return float(steps) if tokens is None else tokens / tokens_per_step


class LossScaleConfig(Section):
    """Dynamic loss scaling of fp16 (Micikevicius et al. 2018)."""

    initial_power: int = Field(16, ge=0, le=32, description="the first scale is 2 to this power")
    window: int = Field(1000, gt=0, description="clean steps in a row that double the scale")
    hysteresis: int = Field(
        2,
        gt=0,
        description="overflows since it last doubled that halve the scale, as each further does",
    )
    minimum: float = Field(1.0, gt=0, description="floor of the scale")


class AnomalyConfig(Section):
    """What happens when numbers go bad, alike on every layout."""

    non_finite: Literal["skip", "rewind", "stop"] = Field(
        "skip",
        description="a loss that is not finite, or a gradient (fp16: at loss_scale.minimum): skip "
        "leaves out the update, rewind goes back to the last snapshot in memory and jumps over "
        "these samples, stop ends the run",
    )
    spike: Literal["ignore", "skip", "rewind", "stop"] = Field(
        "ignore", description="the same for a loss far above those before it"
    )
    spike_zscore: float = Field(
        6.0, gt=0, description="how far: standard deviations above their mean"
    )
    spike_window: int = Field(
        100, gt=1, description="how many losses before it; no spike until there are as many"
    )
    snapshot_every_steps: int = Field(
        50, gt=0, description="steps between the snapshots in host memory that rewind needs"
    )
    max_rewinds: int = Field(
        10, gt=0, description="global batches that a run jumps over; one more ends it as diverged"
    )

    @property
    def rewinds(self) -> bool:
        """Whether anything makes the run go back."""
        return "rewind" in (self.non_finite, self.spike)

    @property
    def spare_batches(self) -> int:
        """Global batches of data that the run may need beyond one for each of its steps."""
        return self.max_rewinds if self.rewinds else 0


class ChecksConfig(Section):
    """What looks after the machines while they train."""

    replicas_every_steps: int = Field(
        100,
        ge=0,
        description="steps between comparisons of the weights that several ranks hold; 0: never",
    )
    replay_every_steps: int = Field(
        0,
        ge=0,
        description="steps between micro-batches whose gradient is computed twice, which must be "
        "equal bit for bit; 0: never",
    )
    pace_every_steps: int = Field(
        50, ge=0, description="steps between comparisons of the ranks' own seconds; 0: never"
    )
    slow_rank: float = Field(
        1.3, gt=1, description="times the median of its peers from which on a rank is named slow"
    )


# What checkpoint.keep_best goes by where nothing else is asked for: the held-out loss.
BY_LOSS = "loss"


class EvaluationConfig(Section):
    """Loss on held-out data during training."""

    every_steps: int = Field(100, ge=0, description="steps between evaluations; 0: never")
    steps: int = Field(10, gt=0, description="global batches per evaluation")
    tasks: tuple[str, ...] = Field(
        (), description="tasks of lm_eval that are asked too, with their data on this machine"
    )
    tasks_every_steps: int = Field(
        0,
        ge=0,
        description="steps between evaluations on tasks, a multiple of every_steps; 0: with each",
    )
    task_folder: str | None = Field(None, description="folder of task files of one's own")
    tasks_limit: int = Field(0, ge=0, description="questions of every task; 0: all")
    few_shot: int | None = Field(
        None, ge=0, description="solved examples before every question; null: as the task says"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _accept_comma_list(cls, value: Any) -> Any:
        """Accept `cloze` and `cloze,multiple_choice`."""
        return tuple(value.split(",")) if isinstance(value, str) else value


class CheckpointConfig(Section):
    """When to save, how many to keep, what to resume from."""

    every_steps: int = Field(500, ge=0, description="steps between checkpoints; 0: only at the end")
    keep_last: int = Field(2, ge=0, description="newest checkpoints kept; 0: all")
    keep_every_steps: int = Field(
        0, ge=0, description="besides, those whose step is a multiple of this are kept; 0: none"
    )
    keep_best: int = Field(
        0, ge=0, description="besides, those of the lowest held-out losses are kept; 0: none"
    )
    keep_best_by: str = Field(
        BY_LOSS,
        description="what the best are judged by: loss, or TASK/MEASURE of evaluation.tasks, of "
        "which lm_eval says whether higher is better",
    )
    asynchronous: bool = Field(
        True, description="write while training goes on, from a copy in host memory"
    )
    deepspeed_files: bool = Field(
        False, description="write DeepSpeed's own files too, for its stock tools"
    )
    local_every_steps: int = Field(
        0,
        ge=0,
        description="steps between copies of each rank's state on its own machine, from which a "
        "restart there goes on; 0: none",
    )
    local_directory: str = Field(
        "/dev/shm",  # a name of its own is made below it
        description="where these copies lie: memory, or a disk, of the machine",
    )
    mirror: str | None = Field(
        None,
        description="folder or URL (s3://...) below which run.name holds a copy of each checkpoint "
        "that is kept; auto goes on from there where none is good here",
    )
    resume: str = Field(
        "auto",
        description="auto: newest good one of this run if any; never; or a checkpoint's folder or "
        "URL",
    )
    weights: str | None = Field(
        None,
        description="checkpoint folder or URL whose weights a fresh run starts from, with a new "
        "optimizer at step 0",
    )


class StopConfig(Section):
    """When a run stops before its last step: saved, and with the exit code of an interruption."""

    wall_clock: str | None = Field(
        None,
        description="time for the whole job, saving included: seconds, [D-]HH:MM:SS, or slurm: "
        "until its Slurm job ends; null: no limit",
    )
    margin_seconds: float = Field(
        30.0, ge=0, description="what stays free of that time beyond a step and a save"
    )

    @field_validator("wall_clock", mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        """Take a number of seconds for its text."""
        return str(value) if isinstance(value, int | float) else value

    @field_validator("wall_clock")
    @classmethod
    def _check_wall_clock(cls, value: str | None) -> str | None:
        if value in (None, UNTIL_SLURM_JOB_ENDS) or wall_clock_seconds(str(value)) > 0:
            return value
        rule = "Must be seconds, HH:MM:SS or D-HH:MM:SS, above zero, or slurm"
        raise PydanticCustomError("wall_clock", rule)


def wall_clock_seconds(text: str) -> float:
    """The length that `text` (5400, 01:30:00, 2-12:00:00) stands for, in seconds; 0 if none."""
    if _SECONDS.fullmatch(text):
        return float(text)
    found = _CLOCK.fullmatch(text)
    if found is None:
        return 0.0
    days, of_day, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + of_day + hours) * 60 + minutes) * 60 + seconds)


class WatchdogConfig(Section):
    """When ranks that died, stopped or hang end the run, named, instead of keeping it."""

    timeout_seconds: float | None = Field(
        None,
        ge=0,
        description="a rank that others wait for may do nothing for so long; "
        "null: 60 on CPUs, 300 on GPUs; 0: nobody watches",
    )
    busy_seconds: float = Field(
        1800.0,
        gt=0,
        description="the same for one that works: computes on a CPU, has not ended its first step, "
        "or is in a checkpoint",
    )
    start_seconds: float = Field(
        300.0, gt=0, description="all ranks must have come within so long after the first"
    )
