"""The names under which DeepSpeed asks for ranks and groups, answered from a Mesh.

DeepSpeed 0.19 looks them up in runtime/engine.py, runtime/utils.py (gradient norm and overflow),
runtime/zero, runtime/base_optimizer.py, utils/groups.py and utils/bwc.py. Its "tensor model
parallel" and "slice parallel" are our tensor axis, "pipe parallel" and "pipeline model parallel"
our pipeline axis, and "model parallel" is both together. Its "data parallel" is our replica axis,
context x data: to the optimizer, ranks with other tokens of one sample are ranks with other
samples. The names of sequence parallelism are absent on purpose: DeepSpeed tests for them with
hasattr and then takes the degree to be 1. Groups of experts it keeps itself
(roots/training/engine/experts.py).
"""

from __future__ import annotations

import torch.distributed as dist

from roots.parallel.mesh import Axis, Mesh


class DeepSpeedMpu:
    """Answers for this rank; created by every rank, after torch.distributed is initialised.

    Torch reads a missing group as the whole world, therefore an axis of size 1, whose group in the
    Mesh is None, is given a real group of this rank alone.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._alone = _alone(mesh)

    def _group(self, axis: Axis) -> dist.ProcessGroup:
        return self._alone if axis.group is None else axis.group

    # Tensor and pipeline together: one copy of the model.

    def get_model_parallel_rank(self) -> int:
        """Index within the ranks that hold one copy of the model."""
        return self._mesh.model.rank

    def get_model_parallel_world_size(self) -> int:
        """Number of ranks that hold one copy of the model."""
        return self._mesh.model.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Group of the ranks that hold one copy of the model; sums norms and overflows."""
        return self._group(self._mesh.model)

    # Data, context included.

    def get_data_parallel_rank(self) -> int:
        """Index of the copy of the model that this rank belongs to."""
        return self._mesh.replica.rank

    def get_data_parallel_world_size(self) -> int:
        """Number of copies of the model."""
        return self._mesh.replica.size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Group over which gradients are averaged and ZeRO partitions its state."""
        return self._group(self._mesh.replica)

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of the data-parallel group."""
        return list(self._mesh.replica.ranks)

    # Tensor, under its newer and its older name.

    def get_tensor_model_parallel_rank(self) -> int:
        """Index along the tensor axis."""
        return self._mesh.tensor.rank

    def get_tensor_model_parallel_world_size(self) -> int:
        """Tensor-parallel degree."""
        return self._mesh.tensor.size

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        """Group of the tensor axis."""
        return self._group(self._mesh.tensor)

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Global rank from which the group broadcasts."""
        return self._mesh.tensor.ranks[0]

    get_slice_parallel_rank = get_tensor_model_parallel_rank
    get_slice_parallel_world_size = get_tensor_model_parallel_world_size
    get_slice_parallel_group = get_tensor_model_parallel_group

    # Pipeline, under its newer and its older name.

    def get_pipeline_model_parallel_rank(self) -> int:
        """Stage of the pipeline."""
        return self._mesh.pipeline.rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Number of stages."""
        return self._mesh.pipeline.size

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        """Group of the stages of one pipeline."""
        return self._group(self._mesh.pipeline)

    get_pipe_parallel_rank = get_pipeline_model_parallel_rank
    get_pipe_parallel_world_size = get_pipeline_model_parallel_world_size
    get_pipe_parallel_group = get_pipeline_model_parallel_group

    def get_global_rank(self) -> int:
        """Rank in the world."""
        return self._mesh.rank


def real_group(axis: Axis, mesh: Mesh) -> dist.ProcessGroup:
    """The group of `axis`, a new one of this rank alone where the Mesh has None."""
    return _alone(mesh) if axis.group is None else axis.group


def _alone(mesh: Mesh) -> dist.ProcessGroup:
    if dist.get_world_size() > 1:
        return dist.new_group([mesh.rank], use_local_synchronization=True)
    world = dist.group.WORLD
    assert world is not None
    return world
