"""Bugs to plant into the CUDA sources, a file of them for each op: BUGS in planted/<op>.py.

tests/simulator/test_planted_bugs.py plants each of them alone and asks that the tests of the op
fail in the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlantedBug:
    """One bug: in csrc/cuda/`file`, the text `old`, found there exactly once, becomes `new`.

    check:    arguments of pytest, "tests/ops/test_rotary.py -k 'simulator and bfloat16'": which
              tests have to fail; best a few that are quick. Paths are relative to the repository.
    seeds:    the schedules of the simulator to try; one that fails is enough
    sanitize: whether it takes the build with AddressSanitizer and UndefinedBehaviorSanitizer, as
              for a read out of bounds
    """

    name: str
    file: str
    old: str
    new: str
    check: str
    seeds: tuple[int, ...] = (0, 1, 2)
    sanitize: bool = False
