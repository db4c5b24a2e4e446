"""DeepSpeed's loss scale of fp16, and the gradient norm that it reports."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.contracts.contract import Place, contract
from tests.contracts.tiny import STAGES, backward, engine_of, one_nan, raised_by, step

LOSS_SCALE = "roots/training/engine/loss_scale.py"
RECORD = ["cur_hysteresis", "cur_iter", "cur_scale", "delayed_shift"]
RECORD += ["last_overflow_iter", "min_scale", "scale_window"]
STEP = "roots/training/engine/step.py"


def scales(stage: int, course: str, **fp16: Any) -> list[float]:
    """Exponents of two of the loss scale after every step of `course`: `.` is clean, `x` has a NaN.

    It ends at the first exception, for which -1 stands.
    """
    engine = engine_of(stage, "fp16", fp16={"loss_scale_window": 2, **fp16})
    found = []
    for each in course:
        if raised_by(step, engine, one_nan() if each == "x" else 1.0):
            return [*found, -1]
        found.append(round(float(engine.optimizer.loss_scale)).bit_length() - 1)
    return found


@contract(
    [[8, 8, 9, 9, 10], [8, 8, 9, 9, 10], [8, 8, 9, 9, 10], [8, 8, 9, 9, 10]],
    relied_on=LOSS_SCALE,
)
def scale_grows_one_step_late(place: Place) -> list[list[float]]:
    """A `loss_scale_window` of 2 doubles the scale after three clean steps the first time, and then
    after every two."""
    return [scales(stage, ".....") for stage in STAGES]


@contract(
    [[7, 7, 7, 8], [7, 7, 7, 8], [7, 7, 7, 8], [7, 7, 7, 8]],
    relied_on=LOSS_SCALE,
)
def scale_grows_one_step_late_after_overflow(place: Place) -> list[list[float]]:
    """After an overflow too it takes three clean steps to double the scale, with a window of 2."""
    return [scales(stage, "x...") for stage in STAGES]


@contract([[7, 6, 5], [8, 7, 6], [8, 7, 6], [8, 7, 6]], relied_on=LOSS_SCALE)
def hysteresis_is_not_read_at_stage_0(place: Place) -> list[list[float]]:
    """With a hysteresis of 2 the first overflow leaves the scale at stages 1 to 3, but halves it at
    stage 0."""
    return [scales(stage, "xxx", hysteresis=2) for stage in STAGES]


@contract([[7, 7, 7], [7, -1], [7, -1], [7, -1]], relied_on=LOSS_SCALE)
def floor_is_silent_at_stage_0(place: Place) -> list[list[float]]:
    """An overflow at `min_loss_scale` raises at stages 1 to 3 and is passed over at stage 0."""
    return [scales(stage, "xxx", min_loss_scale=2**7) for stage in STAGES]


@contract([[[False, True], "KeyError: 'lowest'"]] * 3, relied_on=LOSS_SCALE)
def update_scale_is_asked_after_every_step(place: Place) -> list[Any]:
    """ZeRO 1 to 3 call `optimizer._update_scale(has_overflow)` once a step, before anything else is
    done with the gradients; what it raises comes out of `engine.step()`."""
    found = []
    for stage in (1, 2, 3):
        engine = engine_of(stage, "fp16")
        told: list[bool] = []

        def update(has_overflow: bool = False, told: list[bool] = told) -> None:
            if len(told) == 2:
                raise KeyError("lowest")
            told.append(bool(has_overflow))

        engine.optimizer._update_scale = update
        step(engine)
        step(engine, one_nan())
        found.append([told, raised_by(step, engine, one_nan())])
    return found


@contract(
    RECORD,
    relied_on=LOSS_SCALE,
)
def names_of_the_record(place: Place) -> list[str]:
    """DynamicLossScaler keeps its numbers under the names that ROOTS reads and writes."""
    scaler = engine_of(1, "fp16").optimizer.loss_scaler
    return [name for name in RECORD if isinstance(getattr(scaler, name, None), int | float)]


def norm_kind(engine: Any, factor: float | Tensor) -> str:
    """The type of the norm after a step with gradients of `factor`; tensors by their dtype."""
    step(engine, factor)
    norm = engine.get_global_grad_norm()
    dtype = str(norm.dtype).removeprefix("torch.") if isinstance(norm, Tensor) else ""
    return " ".join(filter(None, [type(norm).__name__, dtype]))


@contract(
    {
        "fp32": ["NoneType", "Tensor float32", "Tensor float32", "Tensor float64"],
        "bf16": ["float", "Tensor float32", "Tensor float32", "Tensor float64"],
        "fp16": ["float", "Tensor float32", "Tensor float32", "Tensor float64"],
    },
    relied_on=STEP,
)
def kinds_of_norms(place: Place) -> dict[str, list[str]]:
    """`get_global_grad_norm()` is None at fp32 without ZeRO, clipping or not, and elsewhere a
    float or a tensor of one of two dtypes."""
    return {
        precision: [
            norm_kind(engine_of(stage, precision, gradient_clipping=1.0), 2.0) for stage in STAGES
        ]
        for precision in ("fp32", "bf16", "fp16")
    }


@contract([4.0, 4.0, 4.0], relied_on=STEP)
def norm_is_before_clipping(place: Place) -> list[float]:
    """The norm that ZeRO 1 to 3 report is that of the gradients before they are clipped."""
    found = []
    for stage in (1, 2, 3):
        engine = engine_of(stage, gradient_clipping=0.5)
        step(engine, 2.0)
        found.append(round(float(engine.get_global_grad_norm()), 4))
    return found


@contract(["ROOTS first", "float"], relied_on="roots/training/engine/overflow.py")
def gradient_hooks_run_in_order(place: Place) -> list[str]:
    """A hook after the accumulation of a gradient that was there before `initialize` sees the
    gradient before ZeRO takes it away."""
    import torch

    from tests.contracts.tiny import Line

    model = Line()
    seen: list[str] = []

    def look(parameter: Tensor) -> None:
        kind = "nothing" if parameter.grad is None else "float"
        seen.extend(["ROOTS first", kind])

    model.weight.register_post_accumulate_grad_hook(look)
    engine = engine_of(2, model=model, optimizer=torch.optim.SGD)
    backward(engine)
    return seen
