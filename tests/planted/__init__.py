"""Silent bugs to plant into roots/, as data: BUGS in each of the files beside this one.

`python -m tests.planted` plants each alone, in a copy of the tree, and asks that its check fails;
see planting.py. They are of the kinds that people have shipped: nothing crashes, numbers stay
plausible, and a run is worse for it or another one than was asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

# What here is no list of bugs.
_OTHERS = ("planting", "test_planted")


@dataclass(frozen=True)
class PlantedBug:
    """One bug: in roots/`file`, the text `old`, found there exactly once, becomes `new`.

    check: arguments of pytest, "tests/ops/test_rotary.py -k bfloat16": which tests have to fail;
           best a few that are quick. Paths are relative to the repository.
    """

    name: str
    file: str
    old: str
    new: str
    check: str

    @property
    def title(self) -> str:
        """File and name, by which bugs are chosen."""
        return f"{self.file}: {self.name}"


def all_bugs() -> list[PlantedBug]:
    """Every bug, by file of bugs and in the order in which they stand there."""
    stems = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    modules = [
        importlib.import_module(f"tests.planted.{stem}") for stem in stems if stem not in _OTHERS
    ]
    return [bug for module in modules for bug in module.BUGS]
