"""Properties of the learning-rate schedules, and their values at the points people look up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.config.training import ScheduleConfig
from roots.training.schedule import learning_rate

NAMES = ("cosine", "linear", "constant", "inverse_sqrt", "wsd")
DECAYING = ("cosine", "linear", "wsd")
PEAK = 1e-3
LOW = 1e-5
TOKENS = 4096


def rate(step: int, total: int = 100, peak: float = PEAK, **fields: Any) -> float:
    fields.setdefault("min_learning_rate", LOW)
    return learning_rate(ScheduleConfig(**fields), peak, step, total, TOKENS)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[str, int, int]:
    """A name, a warmup and a number of steps that leaves room for a decay."""
    total = draw(st.integers(20, 5000))
    return draw(st.sampled_from(NAMES)), draw(st.integers(0, total // 2)), total


@given(schedules(), st.integers(0, 6000))
def test_rate_stays_between_zero_and_the_peak(schedule: tuple[str, int, int], step: int) -> None:
    name, warmup, total = schedule
    value = rate(step, total, name=name, warmup_steps=warmup)
    assert 0 < value <= PEAK
    if step >= warmup:
        assert value >= LOW


@given(schedules())
def test_warmup_is_linear_and_ends_at_the_peak(schedule: tuple[str, int, int]) -> None:
    name, warmup, total = schedule
    for step in range(0, warmup, max(1, warmup // 7)):
        assert rate(step, total, name=name, warmup_steps=warmup) == PEAK * (step + 1) / warmup
    if warmup:
        assert rate(warmup - 1, total, name=name, warmup_steps=warmup) == PEAK


@given(schedules())
@settings(max_examples=40)
def test_rate_never_jumps(schedule: tuple[str, int, int]) -> None:
    name, warmup, total = schedule
    values = [rate(s, total, name=name, warmup_steps=warmup) for s in range(total + 5)]
    decay = max(1, total // 10) if name == "wsd" else total - warmup
    # Steepest slopes: 1/w in the warmup and for inverse_sqrt, pi/2 over the decay of a cosine.
    bound = PEAK * max(1 / max(warmup, 1), math.pi / 2 / decay)
    if name == "inverse_sqrt" and warmup == 0:
        bound = PEAK * (1 - math.sqrt(1 / 2))
    jumps = [abs(after - before) for before, after in zip(values, values[1:], strict=False)]
    assert max(jumps) <= bound * (1 + 1e-9)


@given(schedules(), st.integers(0, 3000))
def test_decay_ends_at_the_minimum_and_stays(schedule: tuple[str, int, int], beyond: int) -> None:
    name, warmup, total = schedule
    if name in DECAYING:
        value = rate(total + beyond, total, name=name, warmup_steps=warmup)
        assert value == pytest.approx(LOW, rel=1e-12)
        assert rate(total - 1, total, name=name, warmup_steps=warmup) > LOW


@given(schedules())
@settings(max_examples=40)
def test_rate_never_rises_after_the_warmup(schedule: tuple[str, int, int]) -> None:
    name, warmup, total = schedule
    values = [rate(s, total, name=name, warmup_steps=warmup) for s in range(warmup, total + 5)]
    assert all(after <= before for before, after in zip(values, values[1:], strict=False))


@given(schedules(), st.integers(1, 6000), st.integers(0, 6000))
def test_tokens_and_steps_agree(schedule: tuple[str, int, int], decay: int, step: int) -> None:
    name, warmup, total = schedule
    by_steps = rate(step, total, name=name, warmup_steps=warmup, decay_steps=decay)
    by_tokens = rate(
        step, total, name=name, warmup_tokens=warmup * TOKENS, decay_tokens=decay * TOKENS
    )
    assert by_tokens == by_steps


def test_tokens_need_not_be_whole_steps() -> None:
    half = rate(0, name="constant", warmup_tokens=TOKENS * 5 // 2)
    assert half == pytest.approx(PEAK / 2.5)
    assert rate(2, name="constant", warmup_tokens=TOKENS * 5 // 2) == PEAK


@given(st.integers(1, 1000))
def test_scaling_the_peak_scales_the_curve(step: int) -> None:
    for name in NAMES:
        once = rate(step, 1000, name=name, warmup_steps=10)
        twice = rate(step, 1000, 2 * PEAK, name=name, warmup_steps=10, min_learning_rate=2 * LOW)
        assert twice == pytest.approx(2 * once, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_warmup_the_first_update_has_the_peak(name: str) -> None:
    assert rate(0, name=name) == PEAK


def test_cosine_is_halfway_in_the_middle() -> None:
    assert rate(60, 110, name="cosine", warmup_steps=10) == pytest.approx((PEAK + LOW) / 2)


def test_linear_quarter() -> None:
    assert rate(25, name="linear") == pytest.approx(PEAK - (PEAK - LOW) / 4)


def test_inverse_sqrt_halves_when_steps_quadruple() -> None:
    assert rate(399, 1000, name="inverse_sqrt", warmup_steps=100) == PEAK / 2


def test_inverse_sqrt_stops_at_the_minimum() -> None:
    assert rate(99_999_999, 1000, name="inverse_sqrt", warmup_steps=100) == LOW


def test_wsd_is_flat_until_its_last_tenth() -> None:
    values = [rate(step, 200, name="wsd", warmup_steps=10) for step in range(201)]
    assert set(values[9:181]) == {PEAK}
    assert values[190] == pytest.approx((PEAK + LOW) / 2)
    assert values[200] == pytest.approx(LOW)


def test_wsd_decay_length_is_its_own_field() -> None:
    assert rate(150, 200, name="wsd", decay_steps=50) == PEAK
    assert rate(151, 200, name="wsd", decay_steps=50) < PEAK


def test_decay_may_end_before_the_run() -> None:
    assert rate(40, name="cosine", decay_steps=40) == LOW
    assert rate(99, name="cosine", decay_steps=40) == LOW


def test_warmup_limits_a_decay_that_starts_inside_it() -> None:
    assert rate(4, 10, name="wsd", warmup_steps=8, decay_steps=9) == pytest.approx(
        min(PEAK * 5 / 8, PEAK * (1 - 3 / 9) + LOW * 3 / 9)
    )


@pytest.mark.parametrize("name", DECAYING)
def test_warmup_as_long_as_the_run_only_rises(name: str) -> None:
    """No step is left for the decay: found when a run of 2 steps had 2 of warmup."""
    values = [rate(step, 4, name=name, warmup_steps=4, decay_steps=4) for step in range(3)]
    assert values[0] == pytest.approx(PEAK / 4)
    assert values == sorted(values)
