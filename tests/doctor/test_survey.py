"""Surveys go to JSON and back; of two, the higher rate counts."""

from __future__ import annotations

import json

import pytest

from roots.doctor.survey import Survey, better
from tests.doctor.surveys import survey_of, with_answer, with_device, with_pairs, with_rates


@pytest.mark.parametrize("gpus", [0, 8])
def test_json_and_back(gpus: int) -> None:
    survey = with_answer(survey_of("abc", gpus), "b", facts=None, silence="x", sees=frozenset("ab"))
    assert Survey.from_json(json.loads(json.dumps(survey.to_json()))) == survey


def test_what_was_slow_once_is_not() -> None:
    well = survey_of("abc")
    slow = with_pairs(with_rates(well, "b", disk=1.0), "b", rate=1.0)
    slow = with_device(slow, "b", 0, matmul=1.0)
    assert better(slow, well) == better(well, slow) == well


def test_what_fails_the_second_time_fails() -> None:
    well = survey_of("abc")
    fails = with_pairs(with_rates(well, "b", disk=None), "b", rate=None, error="timed out")
    assert better(well, fails) == fails
    assert better(fails, well) == well
    gone = with_rates(well, "b", devices=(), silence="gone")
    assert better(well, gone) == gone


def test_product_that_differed_once_differs() -> None:
    well = survey_of("abc")
    once = with_device(well, "b", 0, differs=True)
    assert better(once, well) == better(well, once) == once


def test_counters_are_since_the_first_time() -> None:
    first = with_rates(survey_of("a", 1), "a", before=({"NVLink errors": 1},))
    second = with_rates(survey_of("a", 1), "a", before=({"NVLink errors": 5},), after=())
    assert better(first, second).rates["a"].before == ({"NVLink errors": 1},)
