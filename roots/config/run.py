"""The whole config of a run, and the batch arithmetic that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roots.config.data import DataConfig, OpsConfig, RunSection, TrackingConfig
from roots.config.model import ModelConfig
from roots.config.parallel import ParallelConfig
from roots.config.rules import batch_problems, cross_section_problems
from roots.config.section import Section
from roots.config.training import (
    CheckpointConfig,
    EvaluationConfig,
    LossScaleConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from roots.errors import RootsError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: global = micro x accumulation x data_parallel (samples)."""

    data_parallel: int
    micro_batch_size: int
    accumulation: int
    global_batch_size: int


class RunConfig(Section):
    """Everything that defines a run. Stored resolved beside every checkpoint."""

    run: RunSection = RunSection()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    ops: OpsConfig = OpsConfig()

    @property
    def run_directory(self) -> Path:
        """Folder of config.yaml, metrics.jsonl, TensorBoard events and checkpoints."""
        return self.run.run_directory

    @property
    def objective(self) -> Literal["causal", "pairs", "span_corruption", "masked"]:
        """What is learned from the data, resolved."""
        if self.data.objective is not None:
            return self.data.objective
        if self.model.architecture == "decoder":
            return "causal"
        return "masked" if self.model.architecture == "encoder" else "span_corruption"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step consumes, of samples at their full length.

        Padding that data.pad_multiple saves counts too, so that schedules follow from the config.
        """
        return self.training.global_batch_size * self.model.sequence_length

    def problems(self) -> list[str]:
        """Every violated cross-section rule, one line each."""
        return cross_section_problems(self)

    def plan_batch(self, world_size: int) -> BatchPlan:
        """Derive data-parallel size and gradient accumulation for `world_size` ranks.

        Raises RootsError with every problem of the config on that many ranks.
        """
        lines = [*self.problems(), *batch_problems(self, world_size)]
        if lines:
            raise RootsError(*lines)
        data_parallel = world_size // (self.parallel.model_ranks * self.parallel.context)
        micro = self.training.micro_batch_size
        return BatchPlan(
            data_parallel=data_parallel,
            micro_batch_size=micro,
            accumulation=self.training.global_batch_size // (micro * data_parallel),
            global_batch_size=self.training.global_batch_size,
        )
