"""The loss scale of fp16: when it is halved, when it doubles, and when it can go no lower.

DeepSpeed keeps the numbers, in the record that it saves and loads; what happens to them is decided
here. Its own rule waits for one clean step too many before it doubles the scale, and doubles it
before the gradients of that step are divided by it, which makes them half of what they are
(DeepSpeed 0.19.8, stages 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from roots.config.training import LossScaleConfig

FACTOR = 2.0


@dataclass
class ScaleNotes:
    """What a step and the loss scale tell each other.

    unrelated: the step is left out for a reason that no other scale would change
    at_floor:  gradients of the last step overflowed, with the scale at `loss_scale.minimum`
    """

    unrelated: bool = False
    at_floor: bool = False


def own_the_scale(
    optimizer: Any, settings: LossScaleConfig, notes: ScaleNotes | None = None
) -> None:
    """Let `update_scale` be what DeepSpeed's ZeRO optimizer does after every step.

    A clean one has divided its gradients by then, by the scale that they were made with. A step
    that is left out for a reason `unrelated` to the scale leaves the scale as it is.

    To be called again when a checkpoint was loaded, which brings a record of its own: `settings`
    are in force from then on, and what the record counts is kept. Nothing without loss scaling.
    """
    scaler = getattr(optimizer, "loss_scaler", None)
    if not isinstance(scaler, DynamicLossScaler):
        return
    seen = scaler.delayed_shift - scaler.cur_hysteresis
    scaler.cur_hysteresis = max(1, settings.hysteresis - seen)
    scaler.delayed_shift = settings.hysteresis
    scaler.scale_window = settings.window
    scaler.min_scale = settings.minimum
    scaler.cur_scale = max(scaler.cur_scale, settings.minimum)
    notes = ScaleNotes() if notes is None else notes

    def before_the_update(has_overflow: bool = False) -> None:
        overflowed = has_overflow and not notes.unrelated
        notes.at_floor = overflowed and update_scale(scaler, overflow=True)

    def step(closure: None = None) -> None:
        # Of the class, for this may be the second time.
        type(optimizer).step(optimizer, closure)
        if not optimizer.overflow:
            update_scale(scaler, overflow=False)

    optimizer._update_scale = before_the_update
    optimizer.step = step


def update_scale(scaler: DynamicLossScaler, overflow: bool) -> bool:
    """Move the scale after a step; whether that overflowed at the minimum, where the scale stays.

    `scale_window` clean steps in a row double it. The overflow that makes `delayed_shift` (our
    hysteresis) of them since the scale last doubled halves it, and so does every further one. At
    the minimum there is none to wait for: no lower scale is the answer to the first of them either.
    """
    at_floor = overflow and scaler.cur_scale <= scaler.min_scale
    if overflow:
        scaler.last_overflow_iter = scaler.cur_iter
        if scaler.cur_hysteresis > 1:
            scaler.cur_hysteresis -= 1
        elif not at_floor:
            scaler.cur_scale = max(scaler.cur_scale / FACTOR, scaler.min_scale)
    elif (scaler.cur_iter - scaler.last_overflow_iter) % scaler.scale_window == 0:
        scaler.cur_scale *= FACTOR
        scaler.cur_hysteresis = scaler.delayed_shift
    scaler.cur_iter += 1
    return at_floor
