"""Retention that could not do anything is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.api import train
from roots.cli.main import run_command
from roots.config import load_config, parse_config
from roots.config.rules.table import TRAINING_RULES
from roots.errors import RootsError
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


def with_mirror(tmp_path: Path, given: str) -> tuple[Path, str]:
    """A config whose runs lie in tmp_path/runs, with a mirror there: its path, and the mirror."""
    runs, link = tmp_path / "runs", tmp_path / "link"
    link.symlink_to(runs)
    place = given.format(runs=runs, link=link)
    path = tmp_path / "mine.yaml"
    text = f"run: {{directory: {runs}}}\ncheckpoint: {{mirror: '{place}'}}\n"
    path.write_text(text + "data: {train: [data]}\n")
    return path, place


def line_on(place: str, tmp_path: Path) -> str:
    return (
        f"checkpoint.mirror='{place}': lies in run.directory='{tmp_path}/runs', whose checkpoints "
        "it is to outlive; name a folder elsewhere, best on another disk, or the URL of an object "
        "store"
    )


@pytest.mark.parametrize("given", ["{runs}", "{runs}/copies", "file://{runs}/.", "{link}"])
def test_mirror_among_the_runs_is_refused(given: str, tmp_path: Path) -> None:
    path, place = with_mirror(tmp_path, given)
    with pytest.raises(RootsError) as caught:
        load_config(path, rules=TRAINING_RULES)
    assert caught.value.lines == (line_on(place, tmp_path),)
    # A checkpoint is read wherever it was trained.
    assert load_config(path).checkpoint.mirror == place


@pytest.mark.parametrize("given", ["{runs}-copies", "file://{runs}-copies", "memory:/{runs}"])
def test_mirror_elsewhere_is_taken(given: str, tmp_path: Path) -> None:
    path, place = with_mirror(tmp_path, given)
    assert load_config(path, rules=TRAINING_RULES).checkpoint.mirror == place


@pytest.mark.parametrize(
    "command", ["train", "launch", "launch --dry-run", "config show", "config deepspeed"]
)
def test_every_front_refuses_it_with_the_same_line(command: str, tmp_path: Path) -> None:
    path, place = with_mirror(tmp_path, "{runs}/copies")
    with pytest.raises(RootsError) as caught:
        run_command([*command.split(), str(path)])
    assert line_on(place, tmp_path) in caught.value.lines


def test_so_does_python(tmp_path: Path) -> None:
    path, place = with_mirror(tmp_path, "{runs}/copies")
    with pytest.raises(RootsError) as caught:
        train(load_config(path))
    assert line_on(place, tmp_path) in caught.value.lines
