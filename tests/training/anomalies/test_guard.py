"""Bad numbers: after every policy a run is, bit for bit, the one that never saw these samples."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest

from roots.config import RunConfig
from roots.errors import ExitCode
from roots.training.callbacks.callback import Callback
from roots.training.callbacks.metrics import StepRecord
from roots.training.loop import Run
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.training.anomalies.runs import (
    Fault,
    Outcome,
    bad_run,
    clean_run,
    differing,
)

STEPS, BATCH = 6, 8
NAN_LOSS = Fault(data_steps=(3,), factor=math.nan)
SPIKE = Fault(data_steps=(3,), factor=50.0)
NAN_GRADIENT = Fault(gradients=(4,))
KINDS = {"loss": NAN_LOSS, "spike": SPIKE, "gradient": NAN_GRADIENT, "floor": NAN_GRADIENT}

# kind, precision, fields of `parallel`
Case = tuple[str, str, dict[str, Any]]
ONE_PROCESS: list[Case] = [
    ("gradient", "fp32", {"zero_stage": 0}),
    ("loss", "fp32", {"zero_stage": 2, "offload_optimizer": "cpu"}),
    ("gradient", "bf16", {"zero_stage": 3}),
    ("floor", "fp16", {"zero_stage": 2}),
    ("loss", "fp16", {"zero_stage": 3}),
]
TWO_PROCESSES: list[Case] = [
    ("spike", "fp32", {"zero_stage": 0}),
    ("floor", "fp16", {"zero_stage": 1}),
    ("gradient", "fp32", {"zero_stage": 3}),
    ("loss", "bf16", {"zero_stage": 2}),
    ("gradient", "bf16", {"tensor": 2}),
    ("spike", "fp16", {"pipeline": 2}),
    ("loss", "bf16", {"pipeline": 2, "pipeline_schedule": "dualpipev"}),
    ("gradient", "bf16", {"expert": 2}),
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("anomalies") / "data")


def config_of(prefix: Path, folder: Path, policy: str, case: Case, **anomaly: Any) -> RunConfig:
    kind, precision, parallel = case
    name = "-".join([kind, precision, policy, *(f"{key}{parallel[key]}" for key in parallel)])
    return small_config(
        prefix,
        folder,
        run={"name": name},
        parallel=parallel,
        model={
            "num_layers": 4 if "pipeline_schedule" in parallel else 2,
            "moe": {"num_experts": 4 if "expert" in parallel else 0},
        },
        training={"steps": STEPS, "precision": precision},
        optimizer={"implementation": "torch"},
        # At its floor from the beginning.
        loss_scale={"initial_power": 0, "hysteresis": 1},
        anomaly={
            "non_finite": policy,
            "spike": policy if kind == "spike" else "ignore",
            "spike_window": 3,
            "spike_zscore": 50.0,
            "snapshot_every_steps": 2,
            **anomaly,
        },
        data={"valid": []},
        checks={"replicas_every_steps": 1},
    )


def runs_of(
    rank: int, world_size: int, cases: list[tuple[Fault, RunConfig, list[int | None]]]
) -> list[tuple[Outcome, list[str]]]:
    """Every run, and where it is not the run on these steps of the data."""
    found = []
    for fault, config, data_steps in cases:
        outcome = bad_run(config, fault)
        wrong = differing(outcome.state, clean_run(config, data_steps)) if data_steps else []
        outcome.state = {}
        found.append((outcome, wrong))
    return found


def by_policy(
    prefix: Path, folder: Path, policy: str, cases: list[Case], ranks: int
) -> list[tuple[Case, Outcome]]:
    """Run all cases; every rank must be the run that never saw the samples."""
    data_steps: list[int | None] = (
        [0, 1, 2, 4, 5, 6] if policy == "rewind" else [0, 1, 2, None, 4, 5]
    )
    tasks = [
        (KINDS[case[0]], config_of(prefix, folder, policy, case), data_steps) for case in cases
    ]
    results = run_distributed(runs_of, ranks, tasks, timeout_seconds=300)
    for each in results:
        for case, (outcome, wrong) in zip(cases, each, strict=True):
            assert outcome.code == ExitCode.DONE, (case, outcome.lines)
            assert wrong == [], case
    return [(case, outcome) for case, (outcome, _) in zip(cases, results[0], strict=True)]


@pytest.mark.parametrize(("ranks", "cases"), [(1, ONE_PROCESS), (2, TWO_PROCESSES)])
def test_a_rewind_jumps_over_exactly_these_samples(
    ranks: int, cases: list[Case], prefix: Path, tmp_path: Path
) -> None:
    for case, outcome in by_policy(prefix, tmp_path, "rewind", cases, ranks):
        (event,) = outcome.events
        assert (event["step"], event["kind"], event["policy"]) == (4, case[0], "rewind"), case
        assert (event["samples"], event["back_to"]) == ([24, 31], 2), case
        # Bad data is bad on every rank, the planted gradient on the last.
        bad = {"spike": None, "loss": 0}.get(case[0], ranks - 1)
        assert event["culprit"].endswith("" if bad is None else f" on rank {bad}"), case
        assert bool(event["culprit"]) == (bad is not None), case
        # The records are those of the run that goes on, the jump in what is consumed.
        assert [record.step for record in outcome.records] == list(range(1, STEPS + 1)), case
        consumed = [record.consumed_samples // BATCH for record in outcome.records]
        assert consumed == [1, 2, 3, 5, 6, 7], case
        assert not any(record.skipped for record in outcome.records), case


def test_a_skip_leaves_out_the_update_alone(prefix: Path, tmp_path: Path) -> None:
    cases = [*TWO_PROCESSES[:2], TWO_PROCESSES[5]]
    for case, outcome in by_policy(prefix, tmp_path, "skip", cases, 2):
        (event,) = outcome.events
        assert (event["step"], event["kind"], event["policy"]) == (4, case[0], "skip"), case
        assert (event["samples"], event["back_to"]) == ([24, 31], None), case
        found = [(record.skipped, record.anomaly) for record in outcome.records]
        assert found == [(False, None)] * 3 + [(True, case[0])] + [(False, None)] * 2, case


def test_a_stop_and_the_bounds_end_the_run_and_name_the_samples(
    prefix: Path, tmp_path: Path
) -> None:
    case: Case = ("loss", "fp32", {"zero_stage": 1})
    spiking: Case = ("spike", "fp32", {"zero_stage": 1})
    fix = "nothing of it is saved; resume from an earlier checkpoint with a lower "
    fix += "optimizer.learning_rate"
    many = Fault(data_steps=(3, 4, 5, 6), factor=math.nan)
    tasks: list[tuple[Fault, RunConfig, list[int | None]]] = [
        (SPIKE, config_of(prefix, tmp_path, "stop", spiking), []),
        (many, config_of(prefix, tmp_path / "skips", "skip", case), []),
        (many, config_of(prefix, tmp_path / "rewinds", "rewind", case, max_rewinds=2), []),
    ]
    ((stop, _), (skips, _), (rewinds, _)) = run_distributed(runs_of, 1, tasks)[0]
    assert {each.code for each in (stop, skips, rewinds)} == {ExitCode.DIVERGED}
    assert stop.lines == (
        f"step 4: is bad, and anomaly.spike=stop (its loss is a spike; samples 24 to 31); {fix}",
    )
    assert [event["samples"] for event in stop.events] == [[24, 31]]
    assert stop.events[0]["zscore"] > 50.0
    assert skips.lines[0].startswith("steps 4 to 6: all have losses that are not finite, with a ")
    assert [event["samples"][0] for event in skips.events] == [24, 32, 40]
    assert rewinds.lines == (
        "step 4: is bad after anomaly.max_rewinds=2 rewinds (the loss is nan; samples 40 to 47); "
        f"{fix}",
    )
    assert [event["back_to"] for event in rewinds.events] == [2, 2, None]


class StopAfterRewind(Callback):
    """Asks the run to stop in the first step after it has gone back."""

    def __init__(self) -> None:
        self._due = False

    def on_rewind(self, step: int) -> None:
        self._due = True

    def on_step_end(self, record: StepRecord) -> None:
        if self._due:
            self._due = False
            signal.raise_signal(signal.SIGTERM)


def stopping(run: Run) -> list[Callback]:
    return [StopAfterRewind()]


def resumed(rank: int, world_size: int, config: RunConfig) -> tuple[list[int], list[str]]:
    """Codes of a run stopped before the samples that it will jump over, and of the rest of it."""
    first = bad_run(config, SPIKE, stopping, saves=True)
    second = bad_run(config, SPIKE, saves=True)
    wrong = differing(second.state, clean_run(config, [0, 1, 2, 4, 5, 6]))
    return [first.code, second.code], wrong


def test_a_resumed_run_remembers_what_it_jumps_over(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "rewind", ("spike", "fp32", {"zero_stage": 1}))
    ((codes, wrong),) = run_distributed(resumed, 1, config)
    assert codes == [ExitCode.INTERRUPTED, ExitCode.DONE]
    # A load puts the optimizer's tensors into another order.
    assert [name for name in wrong if name.startswith("tensor ")] == []
    (event,) = (config.run_directory / "anomalies.jsonl").read_text().splitlines()
    assert '"back_to": 2' in event
