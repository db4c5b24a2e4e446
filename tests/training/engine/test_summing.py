"""Gradients of micro-batches, replicas and tied weights are summed in fp32, whatever is trained in.

Every gradient is replaced, behind the backward pass, by 1 in one micro-batch of one replica and in
all others by a quarter of the distance from 1 to the next number of the run's dtype. In 16 bits all
those are lost or doubled, whichever comes first; in fp32 the sum is exact. The first moment of Adam
with beta1 = 0 is the gradient that it was given, the mean over replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.device import launch_environment
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.training.assemble import build_engine, start_process, topology_of
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset

# 1 + EPSILON is 1 in the dtype, and so is what a sum that begins at 1 stays at.
EPSILON = {"bf16": 2.0**-9, "fp16": 2.0**-12}
ACCUMULATION = 4
EXPERTS = {"moe": {"num_experts": 4, "ffn_hidden_size": 16}}


@dataclass(frozen=True)
class Case:
    """A layout and a precision: fields of `parallel`, and of `model`."""

    precision: str
    parallel: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, prefix: Path, ranks: int) -> RunConfig:
        parallel = {"zero_persistence_threshold": 0, **self.parallel}
        data_parallel = ranks // (parallel.get("pipeline", 1) * parallel.get("context", 1))
        return small_config(
            prefix,
            prefix.parent,
            parallel=parallel,
            model={
                "num_layers": 2,
                "hidden_size": 16,
                "num_heads": 2,
                "norm": "rms_norm",
                "tied_embeddings": "pipeline" in parallel,
                **self.model,
            },
            training={
                "steps": 1,
                "precision": self.precision,
                "gradient_clipping": 0.0,
                "micro_batch_size": 1,
                "global_batch_size": ACCUMULATION * data_parallel,
            },
            optimizer={"beta1": 0.0, "implementation": "torch"},
            schedule={"warmup_steps": 0},
            loss_scale={"initial_power": 0},
        )


@dataclass(frozen=True)
class Found:
    """Gradients of this rank by name: smallest and largest element, times the replicas."""

    sums: dict[str, tuple[float, float]]
    replicas: int
    replica: int
    expert_replicas: tuple[int, ...]


# A pipeline comes last: it is the last that DeepSpeed can build in one process.
ON_TWO = [
    *(
        Case(precision, {"zero_stage": stage})
        for precision in ("bf16", "fp16")
        for stage in (1, 2, 3)
    ),
    Case("bf16", {"zero_stage": 1, "context": 2}),
    Case("bf16", {"zero_stage": 2, "offload_optimizer": "cpu"}),
    Case("fp16", {"zero_stage": 1, "pipeline": 2}),
]
ON_FOUR = [
    Case("bf16", {"zero_stage": 1, "expert": 2}, EXPERTS),
    Case("fp16", {"zero_stage": 2, "expert": 2}, EXPERTS),
    Case("bf16", {"zero_stage": 1, "pipeline": 2}),
]


def planted_sums(rank: int, ranks: int, configs: list[RunConfig]) -> list[Found]:
    """Train one step of every config with gradients of known values."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    return [_planted_sums(config, ranks, device) for config in configs]


def _planted_sums(config: RunConfig, ranks: int, device: Any) -> Found:
    plan = plan_batch(config, ranks)
    mesh = Mesh.create(topology_of(config, plan))
    data = build_data(config, plan, mesh.data.rank)
    engine = build_engine(config, plan, mesh, device)
    for parameter in engine.module.parameters():
        large = mesh.replica.rank == 0
        parameter.register_hook(_replaced(large, EPSILON[config.training.precision]))
    for micro_batches, _ in data.train.iterate(0):
        engine.train_step(micro_batches, 1e-3)
    sums = {}
    for shard, moment in engine.first_moments():
        total = moment.double() * mesh.replica.size
        sums[shard.name] = (float(total.min()), float(total.max()))
    return Found(sums, mesh.replica.size, mesh.replica.rank, mesh.expert_data.ranks)


def _replaced(large: bool, epsilon: float) -> Callable[[Tensor], Tensor]:
    """A hook that makes the first gradient all ones if `large`, and every other one epsilons."""
    values = iter([1.0] if large else [])
    return lambda gradient: torch.full_like(gradient, next(values, epsilon))


def expected(name: str, found: Found, case: Case) -> float:
    """The exact sum over micro-batches and replicas; a tied weight has it from either stage."""
    epsilon = EPSILON[case.precision]
    replicas = found.replicas
    if ".experts." in name:
        # Of the ranks that hold these experts; only those with rank 0 among them had a 1.
        replicas = len(found.expert_replicas)
        if 0 not in found.expert_replicas:
            return replicas * ACCUMULATION * epsilon
    once = 1.0 + (replicas * ACCUMULATION - 1) * epsilon
    tied = "pipeline" in case.parallel and name in ("embedding.tokens.weight", "head.weight")
    return 2 * once if tied else once


@pytest.mark.parametrize(("ranks", "cases"), [(2, ON_TWO), (4, ON_FOUR)], ids=["two", "four"])
def test_sums_are_exact_where_16_bits_lose_all_but_the_first(
    ranks: int, cases: list[Case], tmp_path: Path
) -> None:
    prefix = write_dataset(tmp_path / "data")
    configs = [case.config(prefix, ranks) for case in cases]
    for each in run_distributed(planted_sums, ranks, configs):
        for case, found in zip(cases, each, strict=True):
            assert len(found.sums) > 5, "the parameters of a model"
            exact = {name: (expected(name, found, case),) * 2 for name in found.sums}
            assert found.sums == exact, case
