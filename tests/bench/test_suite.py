"""The benchmark of the suite is the parent of all orphans, and lets nobody wait for them."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.sources import ROOT

_WAITER = """
orphan=$( (sleep 0 >/dev/null & echo $!) )
while [ -e /proc/$orphan ]; do sleep 0.02; done
exit 5
"""
_BENCHMARK = f"""
import ctypes, subprocess
from tests.bench import suite
ctypes.CDLL(None).prctl(suite._PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
print(suite._wait(subprocess.Popen(["bash", "-c", {_WAITER!r}])))
"""


def test_who_waits_for_an_orphan_to_be_gone_goes_on() -> None:
    command = [sys.executable, "-c", _BENCHMARK]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "5\n"
