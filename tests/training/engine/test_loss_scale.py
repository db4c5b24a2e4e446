"""What the numbers of loss_scale mean, step by step, and that they hold in the engine."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from roots.config.training import LossScaleConfig
from roots.training.engine.loss_scale import ScaleNotes, own_the_scale, update_scale


class Optimizer:
    """What DeepSpeed's ZeRO optimizers have of a scale, and the order in which they use it."""

    def __init__(self, scaler: Any) -> None:
        self.loss_scaler = scaler
        self.overflow = False
        self.divided_by: list[float] = []

    def _update_scale(self, has_overflow: bool = False) -> None:
        raise AssertionError("DeepSpeed's own rule")

    def step(self, closure: None = None) -> None:
        """Update the scale, and after it divide the gradients by it."""
        self._update_scale(self.overflow)
        if not self.overflow:
            self.divided_by.append(self.loss_scaler.cur_scale)


def scaler_of(**fields: Any) -> DynamicLossScaler:
    settings = LossScaleConfig(**{"initial_power": 8, **fields})
    scaler = DynamicLossScaler(
        init_scale=2.0**settings.initial_power,
        scale_window=settings.window,
        min_scale=settings.minimum,
        delayed_shift=settings.hysteresis,
        consecutive_hysteresis=False,
    )
    own_the_scale(Optimizer(scaler), settings)
    return scaler


def scales(steps: str, **fields: Any) -> list[float]:
    """The scale after every step; "x" overflows, "." is clean."""
    scaler = scaler_of(**fields)
    found = []
    for step in steps:
        update_scale(scaler, step == "x")
        found.append(scaler.cur_scale)
    return found


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_window_is_the_number_of_clean_steps(window: int) -> None:
    assert scales("." * 2 * window, window=window) == (
        [256.0] * (window - 1) + [512.0] * window + [1024.0]
    )


def test_an_overflow_begins_the_window_anew() -> None:
    assert scales("...x....", window=4, hysteresis=1) == [256] * 3 + [128] * 4 + [256]


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_hysteresis_is_the_number_of_overflows_that_halve(hysteresis: int) -> None:
    found = scales("x" * (hysteresis + 1), hysteresis=hysteresis)
    assert found == [256.0] * (hysteresis - 1) + [128.0, 64.0]


def test_clean_steps_between_overflows_do_not_count_and_a_doubling_counts_anew() -> None:
    assert scales("x..x", hysteresis=2, window=9) == [256, 256, 256, 128]
    # Doubled after the second clean step; the count is two again.
    assert scales("x..xx", hysteresis=2, window=2) == [256, 256, 512, 512, 256]


def test_the_lowest_scale_is_reached_and_not_passed() -> None:
    scaler = scaler_of(hysteresis=1, minimum=100.0, window=2)
    found = [update_scale(scaler, overflow=True) for _ in range(4)]
    assert found == [False, False, True, True]
    assert scaler.cur_scale == 100.0
    # From there it doubles again as ever.
    assert [update_scale(scaler, overflow=False) for _ in range(2)] == [False, False]
    assert scaler.cur_scale == 200.0


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_the_first_overflow_at_the_lowest_scale_is_told(hysteresis: int) -> None:
    scaler = scaler_of(hysteresis=hysteresis, minimum=256.0)
    assert [update_scale(scaler, overflow=True) for _ in range(4)] == [True] * 4
    assert scaler.cur_scale == 256.0


def test_a_step_learns_that_the_scale_is_at_its_floor() -> None:
    optimizer, notes = Optimizer(scaler_of()), ScaleNotes()
    own_the_scale(optimizer, LossScaleConfig(hysteresis=1, minimum=128.0), notes)
    optimizer.overflow = True
    told = []
    for _ in range(3):
        optimizer.step()
        told.append(notes.at_floor)
    assert told == [False, True, True]
    optimizer.overflow = False
    optimizer.step()
    assert not notes.at_floor


def test_a_step_left_out_for_another_reason_leaves_the_scale() -> None:
    optimizer, notes = Optimizer(scaler_of()), ScaleNotes(unrelated=True)
    own_the_scale(optimizer, LossScaleConfig(hysteresis=1, minimum=256.0), notes)
    before = dict(vars(optimizer.loss_scaler))
    optimizer.overflow = True
    optimizer.step()
    assert vars(optimizer.loss_scaler) == before
    assert not notes.at_floor


def test_new_settings_hold_and_what_was_counted_is_kept() -> None:
    scaler = scaler_of(hysteresis=3, window=100)
    update_scale(scaler, overflow=True)
    optimizer = Optimizer(scaler)
    own_the_scale(optimizer, LossScaleConfig(hysteresis=2, window=2, minimum=512.0))
    assert scaler.cur_scale == 512.0
    optimizer.step()
    assert scaler.cur_scale == 512.0
    optimizer.step()
    assert scaler.cur_scale == 1024.0
    # One overflow had been counted before the doubling: the next halves at two.
    optimizer.overflow = True
    optimizer.step()
    optimizer.step()
    assert scaler.cur_scale == 512.0


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_divided_by_the_scale_that_they_were_made_with(times: int) -> None:
    """And not by the doubled one of the step after; also when a checkpoint has been loaded."""
    scaler = scaler_of(window=2)
    optimizer = Optimizer(scaler)
    for _ in range(times):
        own_the_scale(optimizer, LossScaleConfig(window=2))
    made_with = []
    for _ in range(5):
        made_with.append(scaler.cur_scale)
        optimizer.step()
    assert made_with == [256, 256, 512, 512, 1024]
    assert optimizer.divided_by == made_with


def test_overflows_that_were_counted_count_on_after_a_resume() -> None:
    scaler = scaler_of(hysteresis=3)
    update_scale(scaler, overflow=True)
    optimizer = Optimizer(scaler)
    own_the_scale(optimizer, LossScaleConfig(hysteresis=3))
    optimizer._update_scale(True)
    assert scaler.cur_scale == 2.0**8
    optimizer._update_scale(True)
    assert scaler.cur_scale == 2.0**7


def test_without_loss_scaling_nothing_is_touched() -> None:
    optimizer = Optimizer(LossScaler(1))
    own_the_scale(optimizer, LossScaleConfig())
    with pytest.raises(AssertionError, match="own rule"):
        optimizer._update_scale(True)
