"""A gradient computed twice: equal where all is well, without a trace in the run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from torch import Tensor

from roots.config import RunConfig
from roots.errors import ExitCode
from roots.training.callbacks.callback import Callback
from roots.training.engine.step import Engine
from roots.training.loop import Run
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.training.anomalies.runs import Fault, Outcome, bad_run, differing

CASES: list[tuple[str, dict[str, Any]]] = [
    ("fp32", {"tensor": 2, "sequence": True, "zero_stage": 0}),
    ("fp16", {"zero_stage": 2, "recompute": "full"}),
    ("bf16", {"expert": 2}),
]


def config_of(folder: Path, name: str, case: tuple[str, dict[str, Any]], every: int) -> RunConfig:
    precision, parallel = case
    return small_config(
        folder / "data",
        folder,
        run={"name": f"{name}-{every}"},
        parallel=parallel,
        # Dropout and experts, which could remember that they were asked twice.
        model={"num_layers": 2, "dropout": 0.1, "moe": {"num_experts": 4}},
        training={"steps": 3, "precision": precision},
        optimizer={"implementation": "torch"},
        data={"valid": []},
        checks={"replay_every_steps": every},
    )


def pairs_of_runs(
    rank: int, world_size: int, pairs: list[tuple[RunConfig, RunConfig]]
) -> list[tuple[Outcome, Outcome, list[str]]]:
    found = []
    for pair in pairs:
        without, replayed = (bad_run(config, Fault()) for config in pair)
        wrong = differing(replayed.state, without.state)
        without.state, replayed.state = {}, {}
        found.append((without, replayed, wrong))
    return found


def test_a_replay_finds_nothing_and_changes_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    pairs = [
        (config_of(tmp_path, str(number), case, 0), config_of(tmp_path, str(number), case, 1))
        for number, case in enumerate(CASES)
    ]
    for each in run_distributed(pairs_of_runs, 2, pairs):
        for case, (without, replayed, wrong) in zip(CASES, each, strict=True):
            assert (without.code, replayed.code) == (0, 0), (case, replayed.lines)
            assert wrong == [], case
            loads = [
                [(record.loss, record.expert_max_load) for record in outcome.records]
                for outcome in (without, replayed)
            ]
            assert loads[0] == loads[1], case


class WrongOnce(Callback):
    """From step 2 on every other gradient of one weight of the last rank has a flipped bit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0

    def on_step_end(self, record: object) -> None:
        mesh = self._engine.mesh
        if self._count or mesh.rank != mesh.world.size - 1:
            return
        self._count = 1
        parameters = dict(self._engine.module.named_parameters())
        parameters["final_norm.weight"].register_hook(self._flip)

    def _flip(self, gradient: Tensor) -> Tensor:
        self._count += 1
        if self._count % 2:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[:1] += gradient.view(-1)[:1].abs() * 2**-20
        return gradient


def wrong_on_the_last(run: Run) -> list[Callback]:
    return [WrongOnce(run.engine)]


def faulty(rank: int, world_size: int, config: RunConfig) -> Outcome:
    outcome = bad_run(config, Fault(), wrong_on_the_last)
    outcome.state = {}
    return outcome


def test_a_rank_that_computes_wrongly_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    config = config_of(tmp_path, "faulty", ("fp32", {"zero_stage": 1}), 2)
    outcomes = run_distributed(faulty, 2, config)
    expected = (
        f"rank 1 ({socket.gethostname()}): computed the gradient of one micro-batch twice before "
        "step 2 and got two results, first that of tensor final_norm.weight; resume from a "
        "checkpoint before it, without these hosts"
    )
    assert [outcome.lines for outcome in outcomes] == [(expected,)] * 2
    assert {outcome.code for outcome in outcomes} == {ExitCode.FAULTY}
    assert len(outcomes[0].records) == 1
