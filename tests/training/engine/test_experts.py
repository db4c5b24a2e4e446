"""What DeepSpeed is told of experts that are spread out: over whom they are averaged."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from deepspeed.utils import groups
from torch import nn

from roots.config import parse_config
from roots.parallel.mesh import Mesh
from roots.parallel.shard import expert_group_name
from roots.parallel.topology import Topology
from roots.training.engine.experts import announced_experts
from tests.helpers.distributed import run_distributed


def announced(rank: int, world_size: int) -> dict[str, list[int]]:
    config = parse_config({"parallel": {"expert": 2}, "model": {"moe": {"num_experts": 4}}})
    mesh = Mesh.create(Topology(data=world_size, expert=2))
    with announced_experts(nn.Linear(1, 1), config, mesh):
        name = expert_group_name(2)
        same, others = (
            groups._EXPERT_DATA_PARALLEL_GROUP[name],
            groups._EXPERT_PARALLEL_GROUP[name],
        )
        return {
            "hold the same": dist.get_process_group_ranks(same),
            "hold others": dist.get_process_group_ranks(others),
        }


@pytest.mark.distributed
def test_gradients_of_an_expert_are_averaged_over_the_ranks_that_hold_it() -> None:
    """Four ranks with two places for experts: 0 and 2 hold the same ones, and so do 1 and 3."""
    for rank, found in enumerate(run_distributed(announced, 4)):
        assert found["hold the same"] == [rank % 2, rank % 2 + 2]
        assert found["hold others"] == [rank // 2 * 2, rank // 2 * 2 + 1]
