"""One bad gradient: the step is skipped by all ranks, at every stage, precision and schedule."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.training.engine.gradients import LARGEST_NORM
from roots.training.engine.step import Engine
from roots.verify.curve import Tamper
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import LoggedCurve, train_curve

BAD_STEP, STEPS = 1, 3

# precision, ranks, fields of `parallel`
ONE_PROCESS: list[tuple[str, dict[str, Any]]] = [
    *((precision, {"zero_stage": stage}) for precision in ("fp32", "bf16") for stage in range(4)),
    *(("fp16", {"zero_stage": stage}) for stage in (1, 2, 3)),
    ("fp32", {"zero_stage": 2, "offload_optimizer": "cpu"}),
    ("bf16", {"zero_stage": 3, "offload_optimizer": "cpu"}),
]
TWO_PROCESSES: list[tuple[str, dict[str, Any]]] = [
    *(("fp32", {"zero_stage": stage}) for stage in range(4)),
    ("bf16", {"zero_stage": 2}),
    ("fp32", {"tensor": 2, "zero_stage": 0}),
    ("fp32", {"pipeline": 2, "zero_stage": 0}),
    ("fp32", {"pipeline": 2, "zero_stage": 1}),
    ("bf16", {"pipeline": 2}),
    ("fp32", {"pipeline": 2, "pipeline_schedule": "dualpipev"}),
    ("bf16", {"pipeline": 2, "pipeline_schedule": "dualpipev"}),
    ("fp32", {"expert": 2, "zero_stage": 0}),
    ("bf16", {"expert": 2}),
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("decision") / "data")


def config_of(prefix: Path, precision: str, parallel: dict[str, Any]) -> RunConfig:
    return small_config(
        prefix,
        prefix.parent,
        parallel=parallel,
        model={"moe": {"num_experts": 4 if "expert" in parallel else 0}},
        training={"steps": STEPS, "precision": precision},
        optimizer={"implementation": "torch"},
        loss_scale={"initial_power": 8, "hysteresis": 1},
        data={"valid": []},
    )


@dataclasses.dataclass
class OneValue:
    """Makes one element of one gradient of the last rank `value` in one step."""

    value: float

    def __call__(self, engine: Engine, step: int) -> None:
        if step != BAD_STEP or engine.mesh.rank != engine.mesh.world.size - 1:
            return
        parameter = next(engine.module.parameters())

        def spoil(gradient: Tensor) -> Tensor:
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[0] = self.value
            return gradient

        handle = parameter.register_hook(spoil)


@dataclasses.dataclass
class StayingState:
    """Demands of every step that what a checkpoint is written from stays until `before_update`.

    A copy of it goes on beside forward and backward (roots/training/saving.py).
    """

    then: Tamper
    views: list[Tensor] = dataclasses.field(default_factory=list)
    values: list[Tensor] = dataclasses.field(default_factory=list)
    asked: int = 0

    def __call__(self, engine: Engine, step: int) -> None:
        if step == 0:
            self.asked = 0
        else:
            # Of the step before: it came to its update, and that is when all changes.
            assert (self.asked, self.same()) == (step, step - 1 == BAD_STEP)
        self.views = [piece.data for piece in engine.written_pieces()]
        self.values = [view.clone() for view in self.views]
        engine.before_update = self.ask
        self.then(engine, step)

    def same(self) -> bool:
        """Whether nothing has changed."""
        return all(map(torch.equal, self.views, self.values))

    def ask(self) -> None:
        """What the engine calls."""
        assert self.same()
        self.asked += 1


def curves_of(
    rank: int, world_size: int, configs: list[RunConfig], tamper: Tamper
) -> list[LoggedCurve]:
    """Train every config after the other; starting a process costs more than a run."""
    return [train_curve(rank, world_size, config, tamper, False) for config in configs]


def curves(
    prefix: Path, ranks: int, kinds: list[tuple[str, dict[str, Any]]], tamper: Tamper
) -> list[list[LoggedCurve]]:
    configs = [config_of(prefix, precision, parallel) for precision, parallel in kinds]
    return run_distributed(curves_of, ranks, configs, tamper, timeout_seconds=300)


@pytest.mark.parametrize(
    ("ranks", "kinds"), [(1, ONE_PROCESS), (2, TWO_PROCESSES)], ids=["one", "two"]
)
def test_one_nan_skips_the_step_everywhere(
    ranks: int, kinds: list[tuple[str, dict[str, Any]]], prefix: Path
) -> None:
    by_rank = curves(prefix, ranks, kinds, StayingState(OneValue(math.nan)))
    reference = by_rank[0][0]
    for index, (precision, parallel) in enumerate(kinds):
        for each in by_rank:
            curve, where = each[index], (precision, parallel)
            assert curve.skipped == [False, True, False], where
            assert [norm is None for norm in curve.norms] == [False, True, False], where
            assert curve.overflows[BAD_STEP].endswith(f" on rank {ranks - 1}"), where
            assert curve.losses == by_rank[0][index].losses, where
            assert curve.scales[-1] == (2.0**7 if precision == "fp16" else 1.0), where
            if "expert" not in parallel:
                # The same course: of the first step applied, of the second not, whatever the stage.
                assert curve.losses == pytest.approx(reference.losses, rel=2e-3), where


def test_a_norm_is_too_large_at_every_stage_or_at_none(prefix: Path) -> None:
    """Stage 3 adds squares in float64, the others in float32: the bound is one."""
    kinds = [kind for kind in ONE_PROCESS if kind[0] != "fp16"]
    for value, skipped in ((LARGEST_NORM * 2, True), (LARGEST_NORM / 16, False)):
        (found,) = curves(prefix, 1, kinds, OneValue(value))
        assert [curve.skipped[BAD_STEP] for curve in found] == [skipped] * len(kinds)
        assert all(math.isfinite(curve.losses[-1]) for curve in found)
