"""Training several pipeline stages through DeepSpeed's engines, of 1F1B and of DualPipeV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from roots.config.batch import BatchPlan
from roots.config.rules.experts import expert_stage_problems
from roots.config.run import RunConfig
from roots.data.batch import Batch
from roots.device import Device
from roots.errors import RootsError
from roots.models.build import TIED_WEIGHT, model_layers
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.pipeline import FoldedPipeline, Pipeline
from roots.planner.stages import blocks_of_stages
from roots.training.engine.accelerator import join_process_group
from roots.training.engine.experts import announced_experts
from roots.training.engine.overflow import GradientWatch
from roots.training.engine.step import Engine, initialise_deepspeed
from roots.training.micro_batch import model_inputs

PipelineItem = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]


class PipelineEngine(Engine):
    """The stage of this rank, driven by DeepSpeed's schedule."""

    @property
    def module(self) -> nn.Module:
        """This rank's stage."""
        return self.deepspeed.module

    def _forward_backward_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        return self.deepspeed.train_batch(self._items(micro_batches))

    def _own_loss(self) -> Tensor:
        total: Tensor | None = self.deepspeed.total_loss
        if total is None:
            return torch.zeros((), device=self.device.torch)
        return total / self.plan.accumulation

    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        """Mean loss over all replicas' micro-batches, without training."""
        batches = [self.receive(batch) for batch in micro_batches]
        with torch.no_grad():
            loss = self.deepspeed.eval_batch(
                self._items(batches), num_micro_batches=self.plan.accumulation, reduce_output="avg"
            )
        return float(loss)

    def _items(self, micro_batches: Sequence[Batch]) -> Iterator[PipelineItem]:
        """(Inputs of stage 0, labels of the last) of every micro-batch, as DeepSpeed takes them."""
        for batch in micro_batches:
            inputs = model_inputs(self.config.model, batch)
            yield inputs, (batch.labels_BT, batch.loss_weights_BT)


def build_pipeline_engine(
    config: RunConfig,
    plan: BatchPlan,
    mesh: Mesh,
    device: Device,
    fill: Callable[[nn.Module], None],
) -> PipelineEngine:
    """Build this rank's stage, or two with DualPipeV, let `fill` give them values, and put them
    under DeepSpeed. Raises RootsError if experts are spread out and a stage has none."""
    # PipelineModule communicates while it is built.
    join_process_group(device)
    options = replace(BuildOptions.of_run(config), device=device.torch)
    folded = config.parallel.pipeline_schedule == "dualpipev"
    blocks = blocks_of_stages(config)
    # `roots train` has asked before; here it holds for every way to get here, alike on all ranks.
    lines = list(expert_stage_problems(config, blocks))
    if lines:
        raise RootsError(*lines, speaks=mesh.rank == 0)
    stage = (FoldedPipeline if folded else Pipeline)(
        model_layers(config.model, mesh, options),
        mesh.topology,
        blocks=blocks,
        tied_weight=TIED_WEIGHT,
    )
    fill(stage)
    watch = GradientWatch(stage, config.ops.check_finite)
    with announced_experts(stage, config, mesh):
        engine = initialise_deepspeed(config, plan, device, stage, mpu=None)
    return PipelineEngine(config, plan, mesh, device, engine, watch)
