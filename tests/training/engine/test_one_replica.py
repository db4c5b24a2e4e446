"""One replica's weights and gradients are not copied, and every number stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roots.config import RunConfig
from roots.training.engine.step import Engine
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import train_curve

REPLACED = "reduce_independent_p_g_buckets_and_remove_grads"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("average") / "data")


def config_of(prefix: Path, precision: str, parallel: dict[str, Any]) -> RunConfig:
    """Four micro-batches a step, and clipping bites."""
    training = {
        "steps": 3,
        "precision": precision,
        "micro_batch_size": 2,
        "global_batch_size": 8,
        "gradient_clipping": 0.5,
    }
    return small_config(
        prefix,
        prefix.parent,
        parallel=parallel,
        training=training,
        optimizer={"implementation": "torch"},
        loss_scale={"initial_power": 8},
    )


def copy_all_the_same(engine: Engine, step: int) -> None:
    """Undo, before the first step, what building the engine did for one replica."""
    if step > 0:
        return
    optimizer = engine.deepspeed.optimizer
    del vars(optimizer)[REPLACED]
    optimizer.reduce_bucket_size = 500_000_000
    for master in optimizer.single_partition_of_fp32_groups:
        master.data = master.data.clone()
    optimizer._link_all_hp_params()


def shares_weights(engine: Engine) -> bool:
    """Whether what the optimizer updates are the model's parameters."""
    held = {each.untyped_storage().data_ptr() for each in engine.module.parameters()}
    masters = engine.deepspeed.optimizer.single_partition_of_fp32_groups
    return all(each.untyped_storage().data_ptr() in held for each in masters)


def assert_weights_are_shared(engine: Engine, step: int) -> None:
    """Fail where the optimizer has a copy of the model, or room for gradients in a bucket."""
    assert engine.deepspeed.optimizer.reduce_bucket_size == 1
    assert shares_weights(engine)


def assert_copied(engine: Engine, step: int) -> None:
    """Fail where the engine is told to use weights and gradients as they are."""
    assert REPLACED not in vars(engine.deepspeed.optimizer)
    if hasattr(engine.deepspeed.optimizer, "single_partition_of_fp32_groups"):
        assert not shares_weights(engine)


@pytest.mark.parametrize(
    ("precision", "ranks", "parallel"),
    [
        ("fp32", 1, {"zero_stage": 1}),
        ("fp32", 1, {"zero_stage": 2}),
        ("fp32", 2, {"zero_stage": 1, "tensor": 2}),
        ("fp32", 2, {"zero_stage": 1, "pipeline": 2}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else str(value),
)
def test_numbers_are_those_of_copies(
    prefix: Path, precision: str, ranks: int, parallel: dict[str, Any]
) -> None:
    config = config_of(prefix, precision, parallel)
    ours = run_distributed(train_curve, ranks, config, assert_weights_are_shared)
    theirs = run_distributed(train_curve, ranks, config, copy_all_the_same)
    for left, right in zip(ours, theirs, strict=True):
        assert left.losses == right.losses
        assert left.norms == right.norms
        assert min(norm for norm in left.norms if norm is not None) > 0.5
        for mine, other in zip(left.steps[-1], right.steps[-1], strict=True):
            assert torch.equal(mine.weight, other.weight)
            assert torch.equal(mine.gradient, other.gradient)


@pytest.mark.parametrize(
    ("precision", "ranks", "parallel"),
    [
        ("fp32", 2, {"zero_stage": 1}),
        ("fp32", 1, {"zero_stage": 2, "offload_optimizer": "cpu"}),
        ("bf16", 1, {"zero_stage": 2}),
        ("fp16", 1, {"zero_stage": 1}),
        ("fp32", 1, {"zero_stage": 3}),
    ],
    ids=["two-replicas", "offload", "fp32-sums", "fp32-sums-of-fp16", "zero3"],
)
def test_who_needs_copies_keeps_them(
    prefix: Path, precision: str, ranks: int, parallel: dict[str, Any]
) -> None:
    run_distributed(train_curve, ranks, config_of(prefix, precision, parallel), assert_copied)
