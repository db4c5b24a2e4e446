"""Parallel attention and MLP (GPT-NeoX) with learned positions, on two tensor ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.config import RunConfig
from roots.training.verify_compare import compare
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import train_curve

TOLERANCE = 1e-5


def config_of(prefix: Path, **parallel: Any) -> RunConfig:
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
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "position": "learned",
            "parallel_residual": True,
        },
        data={"reset_positions": True},
        training={"steps": 6, "gradient_clipping": 0.5},
        optimizer={"learning_rate": 1e-2, "epsilon": 1e-3, "implementation": "torch"},
    )


@pytest.mark.parametrize("sequence", [False, True])
def test_branches_on_two_tensor_ranks_equal_one_process(sequence: bool, tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data")
    (reference,) = run_distributed(train_curve, 1, config_of(prefix))
    ranks = run_distributed(train_curve, 2, config_of(prefix, tensor=2, sequence=sequence))
    comparison = compare(reference, ranks, TOLERANCE)
    assert comparison.equal, comparison.first.describe() if comparison.first else ""
