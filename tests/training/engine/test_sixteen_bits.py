"""Runs in 16 bits against fp32 from the same rounded weights: losses and the gradient of a tensor.

Layouts in 16 bits are elsewhere compared with each other; what all of them do wrong shows here. The
model has experts, whose router losses reach the gradient past the loss, and past its scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.device import Device, launch_environment
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.training.assemble import build_engine, start_process, topology_of
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset

RANKS, STEPS = 2, 5
RATE = 1e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A rounding changes a number by half of this share of it at most, by a fifth as a rule.
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}
# A gradient has passed a good dozen roundings on its way, which add up like their root: 0.8 to 1.1
# units here. Losses average over tokens, whose logits alone are rounded: 0.04 units at most.
GRADIENT_UNITS = 2.0
LOSS_UNITS = 0.1


@dataclass(frozen=True)
class Case:
    """A precision, a stage, and the power of the loss scale; fp32 starts from `rounded` weights."""

    precision: str
    zero_stage: int
    power: int = 0
    rounded: str = ""

    def config(self, prefix: Path) -> RunConfig:
        return small_config(
            prefix,
            prefix.parent,
            parallel={"zero_stage": self.zero_stage, "zero_persistence_threshold": 0},
            model={
                "num_layers": 2,
                "norm": "rms_norm",
                "position": "rotary",
                "activation": "swiglu",
                "moe": {
                    "num_experts": 4,
                    "top_k": 2,
                    "ffn_hidden_size": 16,
                    "balance_loss": 0.5,
                    "z_loss": 0.1,
                },
            },
            training={
                "steps": STEPS,
                "precision": self.precision,
                "gradient_clipping": 0.0,
                "global_batch_size": 16,
            },
            optimizer={"learning_rate": RATE, "beta1": 0.0, "implementation": "torch"},
            schedule={"name": "constant", "warmup_steps": 0},
            loss_scale={"initial_power": self.power},
        )


@dataclass(frozen=True)
class Found:
    """Losses of all steps, and by name the gradients of the first."""

    losses: list[float]
    gradients: dict[str, Tensor]


REFERENCES = [Case("fp32", 0, rounded="bf16"), Case("fp32", 0, rounded="fp16")]
CASES = [
    *(Case("bf16", stage) for stage in (1, 2, 3)),
    *(Case("fp16", stage, power) for stage, power in ((1, 8), (1, 16), (2, 16), (3, 8))),
]


def train_all(rank: int, ranks: int, cases: list[tuple[Case, RunConfig]]) -> list[Found]:
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    return [_train(case, config, ranks, device) for case, config in cases]


def _train(case: Case, config: RunConfig, ranks: int, device: Device) -> Found:
    plan = plan_batch(config, ranks)
    mesh = Mesh.create(topology_of(config, plan))
    engine = build_engine(config, plan, mesh, device)
    if case.rounded:
        # Without ZeRO these are the weights that the optimizer updates.
        for parameter in engine.module.parameters():
            parameter.data.copy_(parameter.data.to(DTYPES[case.rounded]))
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for micro_batches, _ in build_data(config, plan, mesh.data.rank).train.iterate(0):
        result = engine.train_step(micro_batches, RATE)
        assert not result.skipped
        losses.append(result.loss)
        if not gradients:
            moments = engine.first_moments()
            gradients = {
                shard.name: each.float().clone().view(shard.local_shape) for shard, each in moments
            }
    return Found(losses, gradients)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Found]:
    prefix = write_dataset(tmp_path_factory.mktemp("sixteen") / "data")
    cases = [*REFERENCES, *CASES]
    first, _ = run_distributed(train_all, RANKS, [(case, case.config(prefix)) for case in cases])
    return dict(zip(cases, first, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.precision}-zero{case.zero_stage}")
def test_run_stays_within_rounding_of_fp32(case: Case, found: dict[Case, Found]) -> None:
    reference, mine = found[REFERENCES[case.precision == "fp16"]], found[case]
    unit = UNIT[case.precision]
    assert mine.losses == pytest.approx(reference.losses, rel=LOSS_UNITS * unit)
    assert mine.gradients.keys() == reference.gradients.keys()
    for name, right in reference.gradients.items():
        error = float((mine.gradients[name] - right).norm() / right.norm())
        assert error < GRADIENT_UNITS * unit, (name, error / unit)
