"""DeepSpeed's machinery for parameters that only some ranks hold: experts spread over an axis.

DeepSpeed reduces, measures and partitions gradients of such parameters over the ranks that hold
the same ones, dividing by the whole data-parallel size, because every expert sees the tokens of all
ranks of its expert group (stage_1_and_2.py average_tensor, engine.py _reduce_expert_gradients).
It does so for parameters with `allreduce` False and `group_name` (roots/parallel/shard.py), in
optimizer groups marked `moe`, with process groups kept in deepspeed.utils.groups; and only if the
model holds one of its own MoE modules: a childless marker stands for that while the engine is made.
With one rank an expert axis needs none of this: experts are then parameters like all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.moe.layer import MoE as DeepSpeedMoE
from deepspeed.utils import groups
from torch import nn

from roots.config.run import RunConfig
from roots.parallel.mesh import Mesh
from roots.parallel.mpu import real_group
from roots.parallel.shard import expert_group_name

_MARKER = "deepspeed_experts_marker"


class _Marker(DeepSpeedMoE):  # type: ignore[misc]  # deepspeed has no type hints
    """What the engine looks for among the modules; it has no parameters and is never called."""

    def __init__(self, num_experts: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = num_experts

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """The groups are those of the Mesh."""


@contextmanager
def announced_experts(module: nn.Module, config: RunConfig, mesh: Mesh) -> Iterator[None]:
    """Within it deepspeed.initialize(module) learns of spread-out experts; every rank must call.

    Each has some: see roots.config.rules.experts, expert_stage_problems.
    """
    if mesh.expert.size == 1:
        yield
        return
    name = expert_group_name(mesh.expert.size)
    groups._EXPERT_PARALLEL_GROUP[name] = real_group(mesh.expert, mesh)
    groups._EXPERT_PARALLEL_GROUP_RANKS[name] = list(mesh.expert.ranks)
    groups._EXPERT_DATA_PARALLEL_GROUP[name] = real_group(mesh.expert_data, mesh)
    groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = list(mesh.expert_data.ranks)
    groups.expert_tensor_parallel_world_size = mesh.tensor.size
    module.add_module(_MARKER, _Marker(config.model.moe.num_experts))
    try:
        yield
    finally:
        delattr(module, _MARKER)


@contextmanager
def files_of_a_dense_model(engine: Any) -> Iterator[None]:
    """Within it DeepSpeed saves and loads as if all ranks held the same parameters.

    Its layout of files for experts expects its own modules. ZeRO's files hold what matters, a
    rank's master weights and moments each; the 16-bit weights come from ROOTS' own.
    """
    had, engine.has_moe_layers = engine.has_moe_layers, False
    try:
        yield
    finally:
        engine.has_moe_layers = had
