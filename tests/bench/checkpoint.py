"""Speed and memory of checkpoints: every figure with its target, of one run, sides taking turns.

    OMP_NUM_THREADS=1 python -m tests.bench.checkpoint [--parameters 200M] [--rounds 5]
        [--only ROW,...] [--folder PLACE] [--json FILE]

Ranks are processes of this machine. PLACE is on the disk that is written to, by default a temporary
folder; it needs some 60 bytes a parameter. Rows:

    saving    the stall of a save beside training against a save that training waits for, by the
              clock; beside it how much longer the step is that the copy goes on beside, which on
              ranks that compute on the same cores is most of the copy; and the rate of the save
              that is waited for against as many dd with fsync as ranks, of the same bytes (TP 2)
    universal from a saved TP 2 run to the first step on PP 2, half the parameters: check, load and
              step, against DeepSpeed's save_checkpoint, ds_to_universal (without its imports),
              load_checkpoint and step, of the same model; and the bytes on disk of both
    relayout  check and load on PP 2 against the same on TP 2, half the parameters
    memory    the largest resident size of loads of half the parameters, TP 4 to TP 1 and back,
              above that before building and without the gradients' sums, which are there before
              a load, against the weights, masters and moments that the rank keeps
    saves     the same of 50 saves beside training, of a tenth of the parameters, above that before
              the first, against the state that is written
    planning  the plan of one rank's file, and rank 0's sealing, for 8, 64, 512 simulated ranks
    checks    what the watchdog (of a tiny model: tests.bench.watchdog), paces and replica checks
              add to a step, at their defaults; DP 2, a tenth of the parameters

The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roots.planner.parameters import count_parameters
from tests.bench import checkpoint_plan, checkpoint_ranks
from tests.bench.checkpoint_ranks import config_of
from tests.bench.measure import describe_machine
from tests.bench.watchdog import measure as measure_watchdog
from tests.helpers.distributed import run_distributed

TIMEOUT_SECONDS = 1800.0
SAVES, SETTLED, CHECKS = 50, 5, 7
Row = dict[str, Any]


class Bench:
    """The rows, each of which leaves nothing behind in `folder`."""

    def __init__(self, parameters: int, rounds: int, folder: Path) -> None:
        self.parameters, self.half, self.tenth = parameters, parameters // 2, parameters // 10
        self.rounds = rounds
        self.folder = folder

    def saving(self) -> list[Row]:
        """Stall and rate of saves."""
        sides = [
            config_of(self.parameters, self.folder, name, tensor=2) for name in ("beside", "waits")
        ]
        first, *rows = _ranks(checkpoint_ranks.save_rounds, 2, *sides, self.rounds + 1)[0]
        stalls = [row["stall"] / row["waiting"] for row in rows]
        rates = [row["bytes"] / row["waiting"] * row["dd"] / row["dd_bytes"] for row in rows]
        return [
            _row(
                "seconds of a stall beside training, of a save that training waits for",
                statistics.median(stalls),
                0.10,
                first=first["stall"] / first["waiting"],
                longer_step=_median(
                    (row["step_of_copy"] - row["step"]) / row["waiting"] for row in rows
                ),
                parameters=count_parameters(sides[0].model).total,
                rounds=rows,
            ),
            _row(
                "bytes a second of a save, from call to end, of those of dd with fsync",
                statistics.median(rates),
                0.70,
                at_least=True,
                gigabytes_per_second=_median(row["bytes"] / row["waiting"] / 1e9 for row in rows),
                dd_gigabytes_per_second=_median(row["dd_bytes"] / row["dd"] / 1e9 for row in rows),
            ),
        ]

    def universal(self) -> list[Row]:
        """From TP 2 to PP 2, by ROOTS and by DeepSpeed."""
        ours, theirs, rows = [], [], []
        for _ in range(self.rounds):
            row = {"roots": self._by_roots(), "deepspeed": self._by_deepspeed()}
            rows.append(row)
            ours.append(_seconds(row["roots"]))
            theirs.append(_seconds(row["deepspeed"]))
        bytes_on_disk = [rows[0][side]["bytes"] for side in ("roots", "deepspeed")]
        loads = [
            _seconds({**row["roots"], "save": 0.0}) / _seconds(row["deepspeed"]) for row in rows
        ]
        return [
            _row(
                "seconds from a saved TP 2 run to the first step on PP 2, of DeepSpeed's",
                _median(loads),
                0.33,
                with_the_save=_median(a / b for a, b in zip(ours, theirs, strict=True)),
                rounds=rows,
            ),
            _row(
                "bytes on disk for it, of DeepSpeed's",
                bytes_on_disk[0] / bytes_on_disk[1],
                0.6,
                roots=bytes_on_disk[0],
                deepspeed=bytes_on_disk[1],
            ),
        ]

    def relayout(self) -> list[Row]:
        """Loading on another layout and on the same."""
        saved = config_of(self.half, self.folder, "saved", tensor=2)
        _ranks(checkpoint_ranks.save_once, 2, saved)
        root = saved.run_directory / "checkpoints"
        rows = []
        for _ in range(self.rounds):
            row = {}
            for name, axis in (("same", "tensor"), ("other", "pipeline")):
                config = config_of(self.half, self.folder, name, resume=root, **{axis: 2})
                row[name] = _ranks(checkpoint_ranks.load_once, 2, config)[0]
            rows.append(row)
        self.clear()
        figure = _median(_loading(row["other"]) / _loading(row["same"]) for row in rows)
        return [_row("seconds of a load on PP 2, of those on TP 2", figure, 1.5, rounds=rows)]

    def memory(self) -> list[Row]:
        """What loading takes above what is loaded."""
        rows = []
        for source, target in ((4, 1), (1, 4)):
            saved = config_of(self.half, self.folder, "saved", tensor=source)
            _ranks(checkpoint_ranks.save_once, source, saved)
            root = saved.run_directory / "checkpoints"
            config = config_of(self.half, self.folder, "loaded", resume=root, tensor=target)
            warm = config_of(0, self.folder, "warm", tensor=target)
            found = _ranks(checkpoint_ranks.memory_of_load, target, config, warm)
            worst = max(found, key=_memory)
            name = f"peak memory of a load, TP {source} to TP {target}, of the rank's own state"
            rows.append(_row(name, _memory(worst), 1.3, **worst))
            self.clear()
        return rows

    def saves(self) -> list[Row]:
        """What saving beside training takes, and whether it grows."""
        config = config_of(self.tenth, self.folder, "many", tensor=2)
        found = _ranks(checkpoint_ranks.memory_of_saves, 2, config, SAVES)
        self.clear()
        worst = max(found, key=lambda each: float(max(each["peaks"]) / each["state"]))
        peaks, state = worst["peaks"], worst["state"]
        growth = max(peaks[-SETTLED:]) / max(peaks[:SETTLED])
        return [
            _row(
                f"peak memory of {SAVES} saves beside training, of the state that is written",
                max(peaks) / state,
                1.25,
                state=state,
                peaks=peaks,
            ),
            _row(f"peak memory of the last {SETTLED} of them, of the first's", growth, 1.02),
        ]

    def planning(self) -> list[Row]:
        """The plan of a save on many ranks."""
        found = [checkpoint_plan.measure(each, self.folder) for each in checkpoint_plan.LAYOUTS]
        self.clear()
        last = found[-1]
        per_entry = [each["plan_seconds"] / each["entries"] for each in found]
        return [
            _row(
                "seconds of a plan for each of the rank's tensors, most of 64 and 512 ranks, of 8",
                max(per_entry[1:]) / per_entry[0],
                1.25,
                layouts=found,
            ),
            _row(
                "seconds of a plan and rank 0's sealing, 512 ranks",
                last["plan_seconds"] + last["seal_seconds"],
                1.0,
            ),
        ]

    def checks(self) -> list[Row]:
        """What looks after the ranks at its defaults, by the step."""
        config = config_of(self.tenth, self.folder, "checked")
        found = _ranks(checkpoint_ranks.cost_of_checks, 2, config, CHECKS)[0]
        every = config.checks
        added = found["pace"] / every.pace_every_steps
        added += found["replicas"] / every.replicas_every_steps
        with contextlib.redirect_stdout(io.StringIO()):
            watchdog = measure_watchdog(1)
        share = watchdog["share_of_counting"] + watchdog["share_of_beats"]
        what = "processor time of watchdog, paces and replica checks, of a step"
        figure = added / found["step"] + share
        return [_row(what, figure, 0.01, checks=found, watchdog=watchdog)]

    def _by_roots(self) -> dict[str, float]:
        saved = config_of(self.half, self.folder, "saved", tensor=2)
        row = _ranks(checkpoint_ranks.save_once, 2, saved)[0]
        root = saved.run_directory / "checkpoints"
        config = config_of(self.half, self.folder, "loaded", resume=root, pipeline=2)
        row |= _ranks(checkpoint_ranks.load_once, 2, config)[0]
        self.clear()
        return dict(row)

    def _by_deepspeed(self) -> dict[str, float]:
        folder = self.folder / "deepspeed"
        saved = config_of(self.half, self.folder, "saved", tensor=2)
        row = {"save": _ranks(checkpoint_ranks.deepspeed_save, 2, saved, folder)[0]}
        # No fork: the tool's own workers would start anew in one.
        tool = [sys.executable, "-m", "tests.bench.checkpoint_universal"]
        words = [*tool, str(folder / "saved"), str(folder / "universal")]
        answer = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        row["convert"] = float(answer.split()[-1])
        row["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        config = config_of(self.half, self.folder, "loaded", pipeline=2)
        row |= _ranks(checkpoint_ranks.deepspeed_load, 2, config, folder)[0]
        self.clear()
        return row

    def clear(self) -> None:
        """Remove all that was written."""
        for path in self.folder.iterdir():
            shutil.rmtree(path)


ROWS = ("saving", "universal", "relayout", "memory", "saves", "planning", "checks")


def _ranks(function: Any, world_size: int, *arguments: Any) -> list[Any]:
    return run_distributed(function, world_size, *arguments, timeout_seconds=TIMEOUT_SECONDS)


def _row(what: str, figure: float, target: float, *, at_least: bool = False, **more: Any) -> Row:
    met = figure >= target if at_least else figure <= target
    sign = ">=" if at_least else "<="
    print(f"{'met   ' if met else 'MISSED'} {figure:8.3f} {sign} {target:<5} {what}", flush=True)
    return {"what": what, "figure": figure, "target": f"{sign} {target}", "met": met, **more}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _seconds(row: dict[str, float]) -> float:
    return sum(value for name, value in row.items() if name != "bytes")


def _loading(row: dict[str, float]) -> float:
    return row["check"] + row["load"]


def _memory(row: dict[str, float]) -> float:
    return (row["peak"] - row["gradients"]) / row["state"]


def _count(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    unit = units.get(text[-1:].upper(), 1)
    return int(float(text.rstrip("KMBkmb")) * unit)


def main(words: list[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=_count, default="200M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    given = sys.argv[1:] if words is None else words
    report: dict[str, Any] = {
        "command": " ".join(["python", "-m", "tests.bench.checkpoint", *given]),
        "machine": describe_machine("cpu"),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=arguments.folder) as place:
        bench = Bench(arguments.parameters, arguments.rounds, Path(place))
        for name in arguments.only.split(","):
            report["rows"] += getattr(bench, name)()
            bench.clear()
            if arguments.json is not None:
                text = json.dumps(report, indent=1) + "\n"
                arguments.json.write_text(text, encoding="utf-8")
    return int(not all(row["met"] for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
