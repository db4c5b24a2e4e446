"""launch/rank.py with a gate before one step, so that a test can act in the middle of a run.

ROOTS_TEST_GATE names a file, ROOTS_TEST_GATE_STEP a step: before that step a rank writes FILE.RANK
and waits until FILE is there. Without them it is launch/rank.py, which measures no processor.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.helpers.sources import ROOT


def main() -> None:
    """Patch what is imported late, and become the rank."""
    from roots.training.callbacks.peak import Peak
    from roots.training.engine.step import Engine

    original = Engine.train_step
    made = []

    def gated(self: Any, *arguments: Any) -> Any:
        made.append(None)
        if len(made) == int(os.environ.get("ROOTS_TEST_GATE_STEP", "0")):
            _wait_at(Path(os.environ["ROOTS_TEST_GATE"]))
        return original(self, *arguments)

    sys.argv = [str(ROOT / "launch" / "rank.py"), *sys.argv[1:]]
    with (
        patch.object(Engine, "train_step", gated),
        patch("roots.training.assemble.device_peak", return_value=Peak(1e12, "assumed")),
    ):
        runpy.run_path(sys.argv[0], run_name="__main__")


def _wait_at(gate: Path) -> None:
    gate.with_name(f"{gate.name}.{os.environ['RANK']}").touch()
    pause = threading.Event()
    while not gate.exists():
        pause.wait(0.05)


if __name__ == "__main__":
    main()
