"""The whole config of a run: all its sections, and what follows from several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from roots.config.data import DataConfig, OpsConfig, RunSection, TrackingConfig
from roots.config.model import ModelConfig
from roots.config.parallel import ParallelConfig
from roots.config.section import Section
from roots.config.training import (
    AnomalyConfig,
    CheckpointConfig,
    ChecksConfig,
    EvaluationConfig,
    LossScaleConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TrainingConfig,
    WatchdogConfig,
)


class RunConfig(Section):
    """Everything that defines a run. Stored resolved beside every checkpoint."""

    run: RunSection = RunSection()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    anomaly: AnomalyConfig = AnomalyConfig()
    checks: ChecksConfig = ChecksConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig = StopConfig()
    tracking: TrackingConfig = TrackingConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
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
