"""Planted bugs fit the sources, and today's share of them is caught: see planting.py.

The share goes round by the day, so that every bug is planted once in PARTS days; with
ROOTS_PLANTED=all in the environment all are, which takes minutes.
"""

from __future__ import annotations

import ast
import datetime
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.planted import PlantedBug, all_bugs
from tests.planted.planting import ROOT

BUGS = all_bugs()
# A share is to take a minute of processor time: seven bugs, their checks without a bug, one start.
SHARE = 7
PARTS = -(-len(BUGS) // SHARE)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title.replace(" ", "_"))
def test_bug_fits_the_source_once_and_compiles(bug: PlantedBug) -> None:
    text = (ROOT / "roots" / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.old) == 1
    assert bug.new != bug.old
    ast.parse(text.replace(bug.old, bug.new))
    named = [word for word in bug.check.split() if word.startswith("tests/")]
    assert named
    assert all((ROOT / word.partition("::")[0]).exists() for word in named)


def test_titles_tell_bugs_apart() -> None:
    assert max(Counter(bug.title for bug in BUGS).values()) == 1
    assert len(BUGS) >= 60


def test_bugs_of_the_day_are_caught() -> None:
    part, parts = datetime.date.today().toordinal() % PARTS + 1, PARTS
    if os.environ.get("ROOTS_PLANTED") == "all":
        part, parts = 1, 1
    command = [sys.executable, "-m", "tests.planted", "--part", str(part), "--parts", str(parts)]
    # A process of its own, because forks of this one would have ROOTS loaded.
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
