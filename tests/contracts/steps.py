"""When DeepSpeed applies a step: gradients that are not finite, clipping, whom it asks."""

from __future__ import annotations

import math
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from tests.contracts.contract import Place, contract
from tests.contracts.tiny import (
    SIZE,
    STAGES,
    engine_of,
    one_nan,
    outcome,
    step,
    weights,
)

DECISION = "roots/training/engine/decision.py"
FP32_SUMS = {"grad_accum_dtype": "fp32"}
LARGEST_SQUARE_ROOT = torch.finfo(torch.float32).max ** 0.5


def after_one_nan(precision: str, **config: Any) -> list[str]:
    """What a step does at stages 0 to 3 if one element of the gradient is NaN."""
    return [outcome(engine_of(stage, precision, **config), one_nan()) for stage in STAGES]


@contract(
    since={
        "": ["applied", "applied", "applied", "applied"],
        "0.19.8": ["applied", "skipped", "skipped", "skipped"],
    },
    relied_on=DECISION,
)
def nan_step_in_fp32(place: Place) -> list[str]:
    """In fp32 a step with a NaN gradient was applied at all stages; since 0.19.8 ZeRO 1 to 3 look
    at the norm and skip it."""
    return after_one_nan("fp32")


@contract(
    since={
        "": ["skipped", "applied", "applied", "applied"],
        "0.19.3": ["skipped", "skipped", "skipped", "applied"],
        "0.19.8": ["skipped", "skipped", "skipped", "skipped"],
    },
    relied_on=DECISION,
)
def nan_step_in_bf16(place: Place) -> list[str]:
    """In bf16, nothing else said, a step with a NaN gradient was applied at stages 1 and 2 until
    `bf16.check_grad_overflow` became true by default, and at stage 3 until 0.19.8."""
    return after_one_nan("bf16")


@contract(
    since={
        "": ["skipped", "applied", "applied", "applied"],
        "0.19.8": ["skipped", "applied", "applied", "skipped"],
    },
    relied_on=DECISION,
)
def nan_step_in_bf16_unchecked(place: Place) -> list[str]:
    """With `bf16.check_grad_overflow` false a step with a NaN gradient is applied at stages 1 and
    2, and skipped at 0, and since 0.19.8 at 3, which look at the norm."""
    return after_one_nan("bf16", bf16={"check_grad_overflow": False})


@contract(["skipped", "skipped", "skipped", "skipped"], relied_on=DECISION)
def nan_step_in_fp16(place: Place) -> list[str]:
    """In fp16 a step with a NaN gradient is skipped at all stages."""
    return after_one_nan("fp16")


@contract(
    since={"": ["unclipped"] * 4, "0.19.3": ["clipped"] * 4},
    relied_on="roots/training/engine/deepspeed_json.py",
)
def clipping_unless_said(place: Place) -> list[str]:
    """Without `gradient_clipping` in its JSON DeepSpeed did not clip, and then clips to 1."""
    found = []
    for stage in STAGES:
        engine = engine_of(stage, gradient_clipping=None)
        step(engine, 2.0)
        moved = 1.0 - weights(engine)[0]
        found.append("unclipped" if moved == 2.0 else "clipped" if moved < 0.51 else str(moved))
    return found


@contract(
    since={
        "": ["applied", "applied", "applied", "applied"],
        "0.19.8": ["applied", "skipped", "skipped", "applied"],
    },
    relied_on=DECISION,
)
def norm_beyond_float32(place: Place) -> list[str]:
    """Finite fp32 gradients of which the squares overflow float32 are, since 0.19.8, an overflow
    at stages 1 and 2, which add squares in float32; stage 3 adds them in float64, and stage 0 does
    not look."""
    return [outcome(engine_of(stage), 2 * LARGEST_SQUARE_ROOT) for stage in STAGES]


@contract([[1, "skipped", False], [1, "skipped", False]], relied_on=DECISION)
def has_overflow_decides_at_1_and_2(place: Place) -> list[Any]:
    """ZeRO 1 and 2 ask `has_overflow(partition_gradients)` once a step if `check_grad_overflow` is
    set on the optimizer; True skips the step, and `was_step_applied()` says so."""
    found = []
    for stage in (1, 2):
        engine = engine_of(stage)
        asked: list[Any] = []
        engine.optimizer.check_grad_overflow = True
        engine.optimizer.has_overflow = lambda partition_gradients=True, a=asked: not a.append(1)
        found.append([outcome(engine, 1.0), engine.was_step_applied()])
        found[-1].insert(0, len(asked))
    return found


@contract([1, "skipped", False], relied_on=DECISION)
def overflow_check_decides_at_3(place: Place) -> list[Any]:
    """ZeRO 3 calls `_overflow_check_and_loss_scale_update()` once a step before it takes the norm;
    True skips the step, and `was_step_applied()` says what `optimizer.overflow` does."""
    engine = engine_of(3)
    asked: list[Any] = []

    def check(update_scale: bool = True) -> bool:
        asked.append(update_scale)
        engine.optimizer.overflow = True
        return True

    engine.optimizer._overflow_check_and_loss_scale_update = check
    done = outcome(engine, 1.0)
    return [len(asked), done, engine.was_step_applied()]


@contract(since={"": "applied", "0.19.8": "skipped"}, relied_on=DECISION)
def infinite_norm_skips_at_3(place: Place) -> str:
    """ZeRO 3 takes, since 0.19.8, an infinity out of `_get_norm_groups()` for an overflow."""
    engine = engine_of(3)
    original = engine.optimizer._get_norm_groups
    engine.optimizer._get_norm_groups = lambda: [each * math.inf for each in original()]
    return outcome(engine, 1.0)


@contract(["skipped", [0.0] * SIZE, "applied"], relied_on=DECISION)
def bf16_optimizer_can_be_stepped_around(place: Place) -> list[Any]:
    """DeepSpeed's bf16 optimizer keeps its sums in fp32 and forgets them by `clear_hp_grads()` and
    `clear_lp_grads()`, so that a step left out leaves nothing for the next."""
    sums = {"immediate_grad_update": True}
    engine = engine_of(1, "bf16", bf16=sums, data_types=FP32_SUMS)
    optimizer = engine.optimizer
    apply = optimizer.step

    def instead(closure: None = None) -> None:
        optimizer.overflow = True
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()

    optimizer.step = instead
    first = outcome(engine, one_nan())
    left = optimizer.fp32_groups_gradients_flat[0][:SIZE].tolist()
    optimizer.step = apply
    return [first, left, outcome(engine, 1.0)]


@contract(
    {
        "fp32": ["SGD", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer", "Stage3"],
        "fp16": ["DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer", "Stage3"],
        "bf16": ["BF16_Optimizer", "DeepSpeedZeroOptimizer", "Stage3"],
    },
    relied_on=f"{DECISION} roots/training/engine/one_replica.py roots/training/engine/step.py",
)
def classes_of_optimizers(place: Place) -> dict[str, list[str]]:
    """Which of DeepSpeed's optimizers stands around torch's at stages 0 to 3 (from 1 on in 16 bits,
    bf16 with fp32 sums): at fp32 without ZeRO none."""
    found: dict[str, list[str]] = {}
    for precision, config in (("fp32", {}), ("fp16", {}), ("bf16", {"data_types": FP32_SUMS})):
        stages = STAGES if precision == "fp32" else STAGES[1:]
        made = [engine_of(stage, precision, **config).optimizer for stage in stages]
        found[precision] = [
            "Stage3" if isinstance(each, DeepSpeedZeroOptimizer_Stage3) else type(each).__name__
            for each in made
        ]
    return found
