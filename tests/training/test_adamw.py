"""The whole of an optimizer step against torch's AdamW on plain tensors, with the same gradients.

The loop, the engine and DeepSpeed run as in training; only what the backward pass finds is replaced
by known numbers. The reference is torch.optim.AdamW, clip_grad_norm_ and a learning rate written
down from the papers: it knows nothing of ROOTS but which parameters there are. So it is for a run
that goes on from a checkpoint, with other settings and another implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from roots.checkpoint.folders import resolve_checkpoint
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.config.training import ScheduleConfig
from roots.device import launch_environment
from roots.parallel import process
from roots.parallel.shard import shard_of
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.metrics import StepRecord, read_metrics
from roots.training.callbacks.peak import Peak
from roots.training.engine.step import Engine
from roots.training.loop import train_loop
from tests.helpers.distributed import run_distributed
from tests.helpers.manifests import turn_into_version_1
from tests.helpers.runs import small_config, write_dataset
from tests.training.test_loop import NoCheckpoints

STEPS, WARMUP, PEAK, LOW = 6, 2, 1e-2, 1e-3
RANKS, ACCUMULATION = 2, 2
SCALE_POWER = 8
CLIPPING = 0.5
SETTINGS = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The weights are below 1, and a step moves one by at most PEAK: six steps of a few roundings of
# fp32 each, of the weight and of the quotient. Any setting that is off moves one by 1e-4 or more.
TOLERANCE = STEPS * 2 * (2.0**-24 + PEAK * 2.0**-20)


@dataclass(frozen=True)
class Case:
    """How it is trained; every shape of the schedule is in one of them."""

    precision: str
    zero_stage: int
    schedule: dict[str, Any]
    implementation: str = "torch"
    parallel: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=lambda: SETTINGS)
    loss_scale: dict[str, int] = field(default_factory=dict)
    deepspeed_files: bool = False
    steps: int = STEPS
    ranks: int = RANKS


COSINE = {"name": "cosine"}
LINEAR = {"name": "linear"}
WSD = {"name": "wsd", "decay_steps": 3}
ROOT = {"name": "inverse_sqrt"}
FLAT = {"name": "constant"}
CASES = [
    Case("fp32", 0, COSINE),
    Case("fp32", 1, LINEAR),
    Case("fp32", 1, FLAT, "deepspeed"),
    Case("fp32", 2, WSD, "deepspeed", {"offload_optimizer": "cpu"}),
    Case("fp32", 3, ROOT),
    Case("bf16", 1, WSD),
    Case("bf16", 2, COSINE),
    Case("bf16", 3, LINEAR),
    Case("fp16", 1, ROOT),
    Case("fp16", 2, LINEAR),
    Case("fp16", 3, COSINE),
]
# Runs of three parts: their last steps, and what is in force in the second. DeepSpeed looks for the
# compiler whenever its Adam is made, which takes longer than all else.
ENDS = (3, 5, STEPS)
OTHER = {"beta1": 0.7, "beta2": 0.95, "epsilon": 2e-3, "weight_decay": 0.1}
RESUMED = [
    (
        Case(
            precision,
            stage,
            FLAT,
            loss_scale={"window": 2},
            deepspeed_files=old,
            ranks=1,
        ),
        between,
    )
    for precision, stage, between, old in (
        ("fp32", 0, "torch", False),
        ("fp32", 1, "deepspeed", False),
        ("bf16", 1, "torch", False),
        ("fp16", 2, "torch", False),
        ("fp16", 3, "torch", False),
        ("fp32", 1, "deepspeed", True),
        ("fp16", 2, "torch", True),
    )
]


@dataclass
class Trained:
    """What a rank saw: weights by name, and the rate of every parameter group at every step."""

    before: dict[str, Tensor]
    masters: dict[str, Tensor]
    weights: dict[str, Tensor]
    rates: list[float] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)


def config_of(case: Case, prefix: Path, name: str) -> RunConfig:
    return small_config(
        prefix,
        prefix.parent,
        run={"name": name},
        parallel={"zero_stage": case.zero_stage, "zero_persistence_threshold": 0, **case.parallel},
        model={"num_layers": 1, "hidden_size": 16, "num_heads": 2, "tied_embeddings": False},
        training={
            "steps": case.steps,
            "precision": case.precision,
            "micro_batch_size": 1,
            "global_batch_size": case.ranks * ACCUMULATION,
            "gradient_clipping": CLIPPING,
        },
        optimizer={
            "implementation": case.implementation,
            "learning_rate": PEAK,
            **case.settings,
        },
        schedule={"warmup_steps": WARMUP, "min_learning_rate": LOW, **case.schedule},
        loss_scale={"initial_power": SCALE_POWER, **case.loss_scale},
        checkpoint={"every_steps": 0, "deepspeed_files": case.deepspeed_files},
    )


def planted_gradient(name: str, shape: torch.Size, rank: int, backward: int) -> Tensor:
    """What rank `rank` finds in its backward pass number `backward`, fp32; its size varies."""
    seed = sum(map(ord, name)) * 1000 + rank * 100 + backward
    size = 10.0 ** (-2 - backward % 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def train_all(
    rank: int, ranks: int, configs: list[RunConfig], saves: bool = False
) -> list[Trained]:
    """Train every config by the real loop with planted gradients."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    # What nothing here reads, and takes longer to measure than all steps.
    with mock.patch("roots.training.assemble.device_peak", return_value=Peak(1e9, "none")):
        return [_train(config, ranks, device, saves) for config in configs]


def _train(config: RunConfig, ranks: int, device: Any, saves: bool) -> Trained:
    with ExitStack() as stack:
        run = assemble(config, plan_batch(config, ranks), device, stack)
        engine = run.engine
        trained = Trained(_weights(engine), {}, {})
        for name, parameter in engine.module.named_parameters():
            shard = shard_of(parameter, name)
            parameter.register_hook(_planted(shard.name, shard.shape, engine, run.start.step))
        _note_rates(engine, trained.rates)
        if not saves:
            run = replace(run, checkpointer=NoCheckpoints())  # type: ignore[arg-type]
        train_loop(run)
        if saves and config.checkpoint.deepspeed_files:
            turn_into_version_1(resolve_checkpoint(config.run_directory))
        trained.weights = _weights(engine)
        trained.masters = dict(trained.weights)
        if config.training.precision != "fp32":
            named = engine.module.named_parameters()
            trained.masters = {
                shard_of(each, name).name: safe_get_full_fp32_param(each) for name, each in named
            }
    if engine.mesh.rank == 0:
        trained.records = read_metrics(config.run_directory / "metrics.jsonl")
    return trained


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {shard.name: weight.clone() for shard, weight in engine.weights()}


def _planted(name: str, shape: tuple[int, ...], engine: Engine, step: int) -> Any:
    calls = iter(range(step * ACCUMULATION, STEPS * ACCUMULATION))
    rank = engine.mesh.data.rank

    def replaced(gradient: Tensor) -> Tensor:
        planted = planted_gradient(name, torch.Size(shape), rank, next(calls))
        return (planted * engine.loss_scale).to(gradient.dtype)

    return replaced


def _note_rates(engine: Engine, rates: list[float]) -> None:
    """Let the innermost optimizer tell the rate of each of its groups whenever it steps.

    DeepSpeed's ZeRO lets it step with one group after the other.
    """
    optimizer = engine.deepspeed.basic_optimizer
    step = optimizer.step

    def noting(*arguments: Any, **named: Any) -> Any:
        rates.extend([group["lr"] for group in optimizer.param_groups])
        return step(*arguments, **named)

    optimizer.step = noting


def rate_of(schedule: ScheduleConfig, step: int) -> float:
    """The learning rate of update `step` (from 0) as the papers have it."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    if schedule.name == "inverse_sqrt":
        return PEAK * math.sqrt(WARMUP) / math.sqrt(step + 1)
    if schedule.name == "constant":
        return PEAK
    if schedule.name == "wsd":
        decay = schedule.decay_steps or 0
        return PEAK - (PEAK - LOW) * max(0, step - (STEPS - decay)) / decay
    done = (step - WARMUP) / (STEPS - WARMUP)
    share = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return LOW + (PEAK - LOW) * share


def reference(
    cases: Sequence[Case], before: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """Weights after all steps, in fp64 rounded to nothing; norms before clipping; rates.

    cases: how it is trained in every step.
    """
    parameters = {name: torch.nn.Parameter(each.double()) for name, each in before.items()}
    matrices = [each for each in parameters.values() if each.dim() > 1]
    vectors = [each for each in parameters.values() if each.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}], foreach=False, fused=False
    )
    norms, rates = [], []
    for step, case in enumerate(cases):
        dtype, scale = DTYPES[case.precision], 2.0**SCALE_POWER
        for name, parameter in parameters.items():
            found = [
                (planted_gradient(name, parameter.shape, rank, backward) * scale).to(dtype) / scale
                for rank in range(case.ranks)
                for backward in range(step * ACCUMULATION, (step + 1) * ACCUMULATION)
            ]
            parameter.grad = torch.stack([each.double() for each in found]).sum(0) / case.ranks
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), CLIPPING)))
        rates.append(rate_of(ScheduleConfig(**case.schedule), step))
        told = case.settings
        for group, decay in zip(optimizer.param_groups, (told["weight_decay"], 0.0), strict=True):
            group.update(lr=rates[-1], weight_decay=decay, eps=told["epsilon"])
            group["betas"] = (told["beta1"], told["beta2"])
        optimizer.step()
    return {name: each.detach() for name, each in parameters.items()}, norms, rates


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("adamw") / "data")


def check_weights(case: Case, found: Trained, expected: dict[str, Tensor]) -> None:
    """Masters within TOLERANCE of the reference, and weights their rounded values."""
    for name, weight in expected.items():
        error = float((found.masters[name].double() - weight).abs().max())
        assert error < TOLERANCE, (case, name, error)
        rounded = found.masters[name].to(DTYPES[case.precision])
        torch.testing.assert_close(found.weights[name], rounded, rtol=0, atol=0)


def test_steps_are_those_of_torchs_adamw(prefix: Path) -> None:
    """Betas, epsilon, bias correction, decay by group, clipping and the rate of every group."""
    configs = [config_of(case, prefix, f"case{number}") for number, case in enumerate(CASES)]
    ranks = run_distributed(train_all, RANKS, configs)
    for number, case in enumerate(CASES):
        expected, norms, planned = reference([case] * STEPS, ranks[0][number].before)
        assert min(norms) < CLIPPING < max(norms), "clipping bites in some steps"
        rates = pytest.approx(planned, rel=1e-12)
        for found in (each[number] for each in ranks):
            # As often in a step as there are groups; ZeRO 3 steps with all for each of them.
            often = len(found.rates) // STEPS
            assert often >= 2, case
            for place in range(often):
                assert found.rates[place::often] == rates, case
            check_weights(case, found, expected)
        records = ranks[0][number].records
        assert [each.lr for each in records] == rates, case
        assert [each.grad_norm for each in records] == pytest.approx(norms, rel=1e-5), case


def test_steps_after_a_resume_are_those_of_torchs_adamw(prefix: Path) -> None:
    """With the moments and the count of before, the settings and the implementation of now.

    So from checkpoints of version 1, whose training state is in DeepSpeed's files.
    The loss scale goes on as well: two clean steps in a row double it, over the end of a part too.
    """
    runs = [
        [
            replace(case, steps=ENDS[0]),
            replace(case, steps=ENDS[1], settings=OTHER, implementation=between),
            replace(case, steps=ENDS[2]),
        ]
        for case, between in RESUMED
    ]
    configs = [
        config_of(case, prefix, f"run{number}") for number, run in enumerate(runs) for case in run
    ]
    (trained,) = run_distributed(train_all, 1, configs, True)
    for number, parts in enumerate(runs):
        found = trained[len(ENDS) * number : len(ENDS) * (number + 1)]
        in_force = [next(case for case in parts if step < case.steps) for step in range(STEPS)]
        expected, norms, _ = reference(in_force, found[0].before)
        check_weights(parts[1], found[-1], expected)
        records = found[-1].records
        assert [each.step for each in records] == list(range(1, STEPS + 1)), parts[1]
        assert [each.grad_norm for each in records] == pytest.approx(norms, rel=1e-5), parts[1]
        scales = [256, 256, 512, 512, 1024, 1024] if parts[1].precision == "fp16" else [1] * STEPS
        assert [each.loss_scale for each in records] == scales, parts[1]
