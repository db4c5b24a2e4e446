"""Lengths of time in the config: one form for seconds, one for clocks."""

from __future__ import annotations

import pytest

from roots.config import parse_config
from roots.config.training import wall_clock_seconds
from roots.errors import RootsError


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("5400", 5400),
        (90.5, 90.5),
        ("01:30:00", 5400),
        ("100:00:00", 360000),
        ("2-12:00:05", 216005),
    ],
)
def test_wall_clock_is_seconds_or_a_clock(value: str | float, seconds: float) -> None:
    kept = parse_config({"stop": {"wall_clock": value}}).stop.wall_clock
    assert wall_clock_seconds(str(kept)) == seconds


@pytest.mark.parametrize(
    "value", ["0", "00:00:00", "-5", "90m", "1:30", "12:60:00", "2-24:00:00", "1e4", "nan", True]
)
def test_other_words_for_a_wall_clock_are_refused(value: object) -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"stop": {"wall_clock": value}})
    rule = "must be seconds, HH:MM:SS or D-HH:MM:SS, above zero, or slurm; "
    assert str(caught.value).startswith(f"stop.wall_clock={value!r}: {rule}")
