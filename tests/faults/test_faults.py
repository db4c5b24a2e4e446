"""Kinds of faults done to a run of two ranks, a third of them each day; the environment variable
FAULTS=all has all of them done. Many at random on four ranks: python -m tests.faults.drive."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS, NEEDS_SMALL_DISK
from tests.faults.scene import Scene, check_equal, make_scene, small_disk, undisturbed

STEPS = 30
_DAYS = 3


def kinds_of_the_day() -> list[str]:
    """Every kind comes on every third day."""
    if os.environ.get("FAULTS") == "all":
        return list(KINDS)
    return list(KINDS)[date.today().toordinal() % _DAYS :: _DAYS]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The run to which nothing is done."""
    return undisturbed(make_scene(tmp_path_factory.mktemp("faults"), 2, 0, STEPS))


@pytest.mark.parametrize("kind", kinds_of_the_day())
def test_run_comes_to_the_same_weights_whatever_is_done_to_it(
    kind: str, reference: Scene, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        folder = tmp_path
        if kind in NEEDS_SMALL_DISK:
            try:
                folder = stack.enter_context(small_disk(tmp_path / "disk", 24))
            except PermissionError as error:
                pytest.skip(f"making a small disk needs root: {error}")
        scene = make_scene(folder, 2, 1, STEPS)
        KINDS[kind](scene)
        scene.finish()
        check_equal(scene, reference)
