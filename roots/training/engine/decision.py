"""Whether a step is applied: asked of ROOTS before the optimizer runs, at every stage.

Left to itself DeepSpeed answers by stage and precision: a NaN in one gradient is applied at fp32
without ZeRO, and skipped elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from roots.training.engine.gradients import LARGEST_NORM


def decide_steps(optimizer: Any, is_skipped: Callable[[], bool]) -> None:
    """Let `is_skipped` say of every step of DeepSpeed's `optimizer` whether it is left out.

    It is called once a step, when all gradients are reduced, and answers the same on every rank. A
    skipped step clears the gradients, changes neither weights nor moments, and shows in
    `optimizer.overflow`. DeepSpeed then skips what is left: finite gradients of which the sum
    overflows, or the norm is above LARGEST_NORM.
    """
    optimizer.overflow = False
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):

        def check(update_scale: bool = True) -> bool:
            assert not update_scale, "ZeRO 3 asks before it takes the norm, and scales after it"
            optimizer.overflow = is_skipped()
            return bool(optimizer.overflow)

        optimizer._overflow_check_and_loss_scale_update = check
        _bound_the_norm(optimizer)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.check_grad_overflow = True
        optimizer.has_overflow = lambda partition_gradients=True: is_skipped()
        if optimizer.cpu_offload:
            _drop_sums_with_offload(optimizer)
    else:
        _decide_in_front(optimizer, is_skipped)


def _drop_sums_with_offload(optimizer: Any) -> None:
    """Let a skipped step clear the fp32 sums of 16-bit gradients too.

    With offload DeepSpeed keeps them, and what is not finite in them spoils every later step.
    """
    original = optimizer.reset_cpu_buffers

    def reset() -> None:
        original()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None

    optimizer.reset_cpu_buffers = reset


def _bound_the_norm(optimizer: Any) -> None:
    """ZeRO 3 adds squares in float64; let a norm be as large as at the other stages and no larger.

    Infinity is what it takes for an overflow.
    """
    original = optimizer._get_norm_groups

    def bounded() -> list[Any]:
        return [each if float(each) <= LARGEST_NORM else math.inf * each for each in original()]

    optimizer._get_norm_groups = bounded


def _decide_in_front(optimizer: Any, is_skipped: Callable[[], bool]) -> None:
    """For DeepSpeed's bf16 optimizer, and for the bare one of fp32 without ZeRO."""
    apply = optimizer.step

    def step(closure: None = None) -> None:
        optimizer.overflow = is_skipped()
        if not optimizer.overflow:
            apply()
        elif isinstance(optimizer, BF16_Optimizer):
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads()

    optimizer.step = step
