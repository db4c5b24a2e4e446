"""The DeepSpeed JSON, of which ROOTS is the only author. Imports neither torch nor deepspeed."""

from __future__ import annotations

from typing import Any

from roots.config.batch import BatchPlan
from roots.config.run import RunConfig

NEVER = 2**31 - 1
# Elements that are reduced at once. They are fp32 in 16-bit runs too, as many bytes as DeepSpeed's
# default number of 16-bit ones.
_REDUCED_ELEMENTS = 250_000_000


def effective_zero_stage(config: RunConfig) -> int:
    """The stage DeepSpeed is asked for: 16-bit runs and spread-out experts make stage 0 stage 1.

    DeepSpeed's 16-bit optimizers without ZeRO take the gradient norm of the local tensor shard
    only, so clipping would differ between layouts. At data-parallel size 1 the memory is the same.
    Without ZeRO one rank saves the optimizer's state of its own experts for everybody's.
    """
    stage = config.parallel.zero_stage
    needs_zero = config.training.precision != "fp32" or config.parallel.expert > 1
    return max(stage, 1) if needs_zero else stage


def clips_outside_engine(config: RunConfig) -> bool:
    """True where ROOTS computes and clips the gradient norm itself: fp32 without ZeRO.

    There DeepSpeed reports no norm, and counts a weight tied between two stages twice.
    """
    return effective_zero_stage(config) == 0


def deepspeed_config(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
    """Compose the JSON for `config` cut as `plan` says.

    Learning rates, logging and monitoring are ROOTS' own, so DeepSpeed gets no scheduler, prints
    nothing and monitors nothing.
    """
    clipping = 0.0 if clips_outside_engine(config) else config.training.gradient_clipping
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        # To DeepSpeed the ranks that share a sample are as many replicas.
        "train_batch_size": plan.global_batch_size * config.parallel.context,
        "gradient_clipping": clipping,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config),
        **_precision(config),
    }
    if config.parallel.pipeline > 1:
        tree["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    return tree


def _zero(config: RunConfig) -> dict[str, Any]:
    parallel = config.parallel
    tree: dict[str, Any] = {"stage": effective_zero_stage(config)}
    if tree["stage"] == 0:
        return tree
    # Buckets reduced in the background need CUDA streams; bit-equal resumes need one fixed order.
    tree["overlap_comm"] = False
    tree["contiguous_gradients"] = True
    if config.training.precision != "fp32":
        tree["reduce_bucket_size"] = _REDUCED_ELEMENTS
    if parallel.offload_optimizer != "none":
        tree["offload_optimizer"] = _place(config, parallel.offload_optimizer)
    if parallel.offload_parameters != "none":
        tree["offload_param"] = _place(config, parallel.offload_parameters)
    if tree["stage"] == 3:
        tree["stage3_gather_16bit_weights_on_model_save"] = False
        tree["stage3_param_persistence_threshold"] = parallel.zero_persistence_threshold
        tree.update(_zero_plus_plus(config))
    return tree


def _place(config: RunConfig, device: str) -> dict[str, Any]:
    """Where something is offloaded to."""
    if device == "nvme":
        return {"device": device, "nvme_path": config.parallel.nvme_path}
    return {"device": device}


def _zero_plus_plus(config: RunConfig) -> dict[str, Any]:
    """What is switched on of ZeRO++."""
    parallel = config.parallel
    tree: dict[str, Any] = {}
    if parallel.zero_hpz_partition_size > 1:
        tree["zero_hpz_partition_size"] = parallel.zero_hpz_partition_size
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(parallel, name):
            tree[name] = True
    return tree


def _precision(config: RunConfig) -> dict[str, Any]:
    """Compute dtype and loss scaling; gradients are summed in fp32 (docs/pages/precision.md).

    Left to its defaults DeepSpeed sums micro-batches of fp16, and replicas of both 16-bit dtypes,
    in 16 bits: 1 + 2^-9 is then 1 in bf16, however many such addends come.
    """
    precision = config.training.precision
    in_fp32 = {
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if precision == "bf16":
        # Without the immediate update the pipeline engine adds wrong gradients to the fp32 sums of
        # every stage but the last (tests/parallel/test_layouts.py, bf16).
        return {**in_fp32, "bf16": {"enabled": True, "immediate_grad_update": True}}
    if precision == "fp16":
        scale = config.loss_scale
        return {
            **in_fp32,
            "fp16": {
                "enabled": True,
                "loss_scale": 0,
                "initial_scale_power": scale.initial_power,
                "loss_scale_window": scale.window,
                "hysteresis": scale.hysteresis,
                "min_loss_scale": scale.minimum,
            },
        }
    return {}
