"""One replica has nobody to average its gradients with; DeepSpeed copies them all the same."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def average_over_one_replica(engine: Any) -> None:
    """Let DeepSpeed's engine use the gradients as they are; for a data-parallel size of 1 alone.

    Its bf16 optimizer flattens, widens and copies every gradient to average it. Its ZeRO 1 and 2
    copy each into a bucket and from there into a buffer made anew every step, two passes over
    memory whose pages are touched for the first time: 0.23 s of a step of 3.5 s for 34 million fp32
    parameters on one core. Their epilogue then takes whatever the gradients are, which without
    those copies are the ones that the backward pass wrote.

    Those that need the buckets for more than the average keep them: with offload they lead to the
    host's buffer, with fp32 sums of 16-bit gradients to those sums; ZeRO 3 has others.
    """
    optimizer = engine.optimizer
    if type(optimizer) is BF16_Optimizer:
        engine.enable_backward_allreduce = False
    elif type(optimizer) is DeepSpeedZeroOptimizer:
        sums_are_gradients = optimizer.gradient_accumulation_dtype == optimizer.dtype
        if sums_are_gradients and not optimizer.cpu_offload:
            optimizer.reduce_independent_p_g_buckets_and_remove_grads = _leave


def _leave(parameter: Any, group: int) -> None:
    """Put this gradient into no bucket."""
