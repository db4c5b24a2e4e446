"""The JSON that DeepSpeed gets: what follows from a config, and nothing DeepSpeed would refuse."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import RunConfig, parse_config
from roots.config.batch import plan_batch
from roots.training.engine.deepspeed_json import (
    clips_outside_engine,
    deepspeed_config,
    effective_zero_stage,
)


def config_of(precision: str = "fp32", **parallel: Any) -> RunConfig:
    return parse_config({"training": {"precision": precision}, "parallel": parallel})


def tree_of(config: RunConfig, ranks: int = 4) -> dict[str, Any]:
    return deepspeed_config(config, plan_batch(config, ranks))


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1), ("fp16", 1)])
def test_sixteen_bit_stage_0_runs_as_stage_1(precision: str, stage: int) -> None:
    assert effective_zero_stage(config_of(precision, zero_stage=0)) == stage
    assert effective_zero_stage(config_of(precision, zero_stage=3)) == 3


def test_clipping_has_one_owner() -> None:
    plain, zero = config_of(zero_stage=0), config_of(zero_stage=1)
    assert clips_outside_engine(plain)
    assert tree_of(plain)["gradient_clipping"] == 0.0
    assert not clips_outside_engine(zero)
    assert tree_of(zero)["gradient_clipping"] == zero.training.gradient_clipping


def test_batch_sizes_multiply() -> None:
    tree = tree_of(config_of(tensor=2))
    product = tree["train_micro_batch_size_per_gpu"] * tree["gradient_accumulation_steps"] * 2
    assert tree["train_batch_size"] == product


def test_ranks_that_share_samples_count_as_replicas() -> None:
    tree = tree_of(config_of(context=2))
    product = tree["train_micro_batch_size_per_gpu"] * tree["gradient_accumulation_steps"] * 4
    assert tree["train_batch_size"] == product


def test_loss_scale_fields_reach_the_engine() -> None:
    config = parse_config(
        {
            "training": {"precision": "fp16"},
            "loss_scale": {"initial_power": 12, "window": 7, "hysteresis": 3, "minimum": 4},
        }
    )
    assert tree_of(config)["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 12,
        "loss_scale_window": 7,
        "hysteresis": 3,
        "min_loss_scale": 4.0,
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_of_16_bits_are_summed_in_fp32(precision: str) -> None:
    tree = tree_of(config_of(precision))
    assert tree["data_types"] == {"grad_accum_dtype": "fp32"}
    assert tree["communication_data_type"] == "fp32"
    assert [name for name in ("bf16", "fp16") if name in tree] == [precision]


def test_offload_is_passed_through() -> None:
    tree = tree_of(config_of(zero_stage=3, offload_optimizer=True, offload_parameters=True))
    zero = tree["zero_optimization"]
    assert (zero["offload_optimizer"], zero["offload_param"]) == ({"device": "cpu"},) * 2


def test_nvme_and_zero_plus_plus_are_passed_through() -> None:
    config = config_of(
        "bf16",
        zero_stage=3,
        offload_optimizer="nvme",
        nvme_path="/disk",
        zero_hpz_partition_size=2,
        zero_quantized_weights=True,
        zero_quantized_gradients=True,
    )
    zero = tree_of(config)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "nvme_path": "/disk"}
    assert "offload_param" not in zero
    assert zero["zero_hpz_partition_size"] == 2
    assert zero["zero_quantized_weights"] is zero["zero_quantized_gradients"] is True
    assert not any(name.startswith("zero_") for name in tree_of(config_of())["zero_optimization"])
