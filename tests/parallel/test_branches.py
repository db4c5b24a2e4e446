"""Parallel attention and MLP (GPT-NeoX) with learned positions, on two tensor ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.parallel import linear
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from roots.verify.compare import compare
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import train_curve

TOLERANCE = 1e-5


def config_of(prefix: Path, dropout: float, **parallel: Any) -> RunConfig:
    """Adam's epsilon is 1e-3, because of 1e-5 a bias here makes a difference of 1e-4 in a step.

    An element of its gradient, 1e-5, is then as large as epsilon, where the size of an update has
    its steepest slope, and the bias, zero before, is that update. All gradients of that step agree
    to 6e-7.
    """
    return small_config(
        prefix,
        prefix.parent,
        parallel=parallel,
        model={
            "num_kv_heads": 2,
            "dropout": dropout,
            "attention_dropout": 0.1,
            "position": "learned",
            "parallel_residual": True,
        },
        data={"reset_positions": True},
        training={"steps": 6, "gradient_clipping": 0.5},
        optimizer={"learning_rate": 1e-2, "epsilon": 1e-3, "implementation": "torch"},
    )


# Without dropout the ranks sum both branches at once.
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("sequence", [False, True])
def test_branches_on_two_tensor_ranks_equal_one_process(
    sequence: bool, dropout: float, tmp_path: Path
) -> None:
    prefix = write_dataset(tmp_path / "data")
    (reference,) = run_distributed(train_curve, 1, config_of(prefix, dropout))
    config = config_of(prefix, dropout, tensor=2, sequence=sequence)
    ranks = run_distributed(train_curve, 2, config)
    comparison = compare(reference, ranks, TOLERANCE)
    assert comparison.equal, comparison.first.describe() if comparison.first else ""


def _sums(rank: int, world_size: int, sequence: bool, fields: dict[str, Any]) -> int:
    """How often one block sums over the tensor ranks in its forward pass."""
    mesh = Mesh.create(Topology(tensor=world_size))
    decoder = small_decoder(small_model(**fields), mesh, sequence_parallel=sequence)
    count = 0

    def counted(sum_over: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            nonlocal count
            count += 1
            return sum_over(*arguments)

        return call

    linear.sum_parts = counted(linear.sum_parts)
    tokens_BT = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        decoder(tokens_BT, tokens_BT, torch.zeros(1, dtype=torch.int64))
    return count


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(
    ("fields", "sums"),
    [
        ({"parallel_residual": True}, 1),
        ({"parallel_residual": True, "dropout": 0.1}, 2),
        ({"parallel_residual": False}, 2),
    ],
    ids=["parallel", "parallel-dropout", "serial"],
)
def test_parallel_branches_are_summed_over_the_ranks_at_once(
    fields: dict[str, Any], sums: int, sequence: bool
) -> None:
    found = run_distributed(_sums, 2, sequence, {**fields, "num_layers": 3})
    assert found == [3 * sums] * 2
