"""Retention that could not do anything is refused."""

from __future__ import annotations

from roots.config import parse_config
from tests.helpers.refusals import refusals


def test_best_without_evaluation() -> None:
    assert refusals({"checkpoint": {"keep_best": 2}, "evaluation": {"every_steps": 0}}) == (
        "checkpoint.keep_best=2: has no effect with evaluation.every_steps=0: no loss tells which "
        "are the best; set evaluation.every_steps, or checkpoint.keep_best=0",
    )


def test_some_besides_all() -> None:
    wish = {"keep_last": 0, "keep_best": 2, "keep_every_steps": 1000}
    rule = "has no effect with checkpoint.keep_last=0, which keeps all"
    assert refusals({"checkpoint": wish}) == tuple(
        f"checkpoint.{name}={wish[name]}: {rule}; set checkpoint.keep_last=1 or more, or "
        f"checkpoint.{name}=0"
        for name in ("keep_every_steps", "keep_best")
    )


def test_kept_steps_that_are_never_saved() -> None:
    assert refusals({"checkpoint": {"keep_every_steps": 70, "every_steps": 40}}) == (
        "checkpoint.keep_every_steps=70: must be a multiple of checkpoint.every_steps=40: only "
        "what is saved is kept; set it to 80, or to 0",
    )
    parse_config({"checkpoint": {"keep_every_steps": 70, "every_steps": 0}})


def test_all_rules_of_retention_together() -> None:
    parse_config({"checkpoint": {"keep_last": 1, "keep_best": 2, "keep_every_steps": 1000}})
