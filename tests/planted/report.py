"""Bugs in the account of where a run's time went, and in its forecast."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "collectives of a step counted as what follows it",
        "training/callbacks/ledger.py",
        "            self._switch(before)",
        '            self._switch("other")',
        "tests/training/callbacks/test_ledger.py -k one_category",
    ),
    PlantedBug(
        "a step that an error ended counted as compute",
        "training/callbacks/ledger.py",
        'self._seconds["lost"] += self._seconds[name] - self._finished[name]',
        'self._seconds["lost"] += 0.0',
        "tests/training/callbacks/test_ledger.py -k step_is_lost",
    ),
    PlantedBug(
        "a line that spans the checkpoint lost whole",
        "training/report/account.py",
        "kept = max(0, step - piece.first) / max(1, piece.last - piece.first)",
        "kept = 0.0",
        "tests/training/report/test_account.py -k part_of_a_line",
    ),
    PlantedBug(
        "idle time counted among that of failures",
        "training/report/account.py",
        'return self.wall - self.seconds["idle"]',
        "return self.wall",
        "tests/training/report/test_account.py -k killed_process",
    ),
    PlantedBug(
        "time until another rank tells the end taken for one in which nothing ran",
        "training/report/account.py",
        "            if start.cause:\n                self.lived_until(time)\n",
        "",
        "tests/training/report/test_account.py -k another_rank",
    ),
    PlantedBug(
        "Daly's interval with the save in it",
        "training/report/forecast.py",
        "(1 + math.sqrt(ratio) / 3 + ratio / 9) - costs.save",
        "(1 + math.sqrt(ratio) / 3 + ratio / 9)",
        "tests/training/report/test_forecast.py -k daly",
    ),
    PlantedBug(
        "restarts that cannot fail themselves",
        "training/report/forecast.py",
        "late = math.exp((costs.restart + costs.delay) / mean)",
        "late = 1 + (costs.restart + costs.delay) / (mean + costs.idle)",
        "tests/training/report/test_forecast.py -k 'at_random or by_hand'",
    ),
]
