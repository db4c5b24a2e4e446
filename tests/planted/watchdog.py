"""Bugs in who is found at fault when a run does not go on."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "a rank that waits itself is blamed",
        "parallel/watchdog/judge.py",
        "        if not waits.get(rank) and sights[rank].late(limits):",
        "        if sights[rank].late(limits):",
        "tests/parallel/watchdog/test_judge.py",
    ),
    PlantedBug(
        "a rank that computes is taken for one that rests",
        "parallel/watchdog/watch.py",
        "            self._worked = time_now\n",
        "            self._worked = self._moved\n",
        "tests/parallel/watchdog/test_watch.py -k slowly",
    ),
    PlantedBug(
        "silence counts for nothing",
        "parallel/watchdog/sides.py",
        "sights[rank] = Sight(record, now() - heard,",
        "sights[rank] = Sight(record, 0.0,",
        "tests/parallel/watchdog/test_watch.py -k stopped",
    ),
    PlantedBug(
        "a stopped rank is left behind",
        "parallel/watchdog/watch.py",
        '        if verdict.kind == "stopped" and near and is_there(owner):',
        '        if verdict.kind == "died" and near and is_there(owner):',
        "tests/parallel/watchdog/test_watch.py -k stopped",
    ),
    PlantedBug(
        "the exit code is not left for the launcher",
        "device.py",
        "            temporary.rename(record)",
        "            temporary.unlink()",
        "tests/test_device.py -k end_at_once",
    ),
]
