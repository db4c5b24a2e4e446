"""Mixture of experts on every layout: the numbers of one process, real ranks, the real engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.parallel.shard import shard_of
from roots.training.engine.step import Engine
from roots.verify.compare import compare
from tests.helpers.distributed import RankFailure, run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import (
    OVERFLOW_STEP,
    LoggedCurve,
    train_curve,
)

STEPS = 6
EVERY_LAYOUT = pytest.mark.every_layout
FP32_TOLERANCE = 1e-5
# Eight units in the last place.
TOLERANCE = {"fp16": 8 * 2.0**-10, "bf16": 8 * 2.0**-7}
EP2: dict[str, Any] = {"expert": 2}

# All have router losses; one drops, the others have shared experts, one a gate before them, and
# one MLPs in every other block.
KINDS: dict[str, dict[str, Any]] = {
    "dropless": {"num_shared_experts": 1, "shared_ffn_hidden_size": 32, "every": 2},
    "capacity": {"capacity_factor": 1.0},
    "gated": {"num_shared_experts": 1, "shared_ffn_hidden_size": 32, "shared_expert_gate": True},
}
# name, world size, kind, fields of `parallel`
LAYOUTS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("dp2-zero3", 2, "dropless", {"zero_stage": 3}),
    ("ep2-tp2", 4, "capacity", {**EP2, "tensor": 2, "zero_stage": 1}),
    ("ep2-pp2", 4, "dropless", {**EP2, "pipeline": 2, "zero_stage": 1}),
    ("tp2-gated", 2, "gated", {"tensor": 2, "zero_stage": 1}),
    ("sp2-gated", 2, "gated", {"tensor": 2, "sequence": True, "zero_stage": 1}),
]
# The same for other pairs, which would make the suite longer.
MORE_LAYOUTS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("dp4-ep2-zero2", 4, "dropless", {**EP2, "zero_stage": 2, "recompute": "full"}),
    ("cp2-ep2-sp2", 4, "dropless", {**EP2, "context": 2, "tensor": 2, "sequence": True}),
    ("tp2-zero0", 2, "capacity", {"tensor": 2, "zero_stage": 0}),
    ("pp2-zero0", 2, "dropless", {"pipeline": 2, "zero_stage": 0}),
    ("dp2-zero0", 2, "dropless", {"zero_stage": 0}),
    ("dp2-zero2", 2, "capacity", {"zero_stage": 2}),
    ("ep2-zero0", 2, "dropless", {**EP2, "zero_stage": 0}),
    ("ep2", 2, "capacity", {**EP2, "zero_stage": 1}),
    ("ep2-zero2", 2, "dropless", {**EP2, "zero_stage": 2}),
    ("ep2-zero2-offload", 2, "dropless", {**EP2, "zero_stage": 2, "offload_optimizer": "cpu"}),
    ("dp4-ep2", 4, "capacity", {**EP2, "zero_stage": 1}),
    ("dp4-ep2-offload", 4, "dropless", {**EP2, "zero_stage": 1, "offload_optimizer": "cpu"}),
    ("ep4", 4, "dropless", {"expert": 4, "zero_stage": 1}),
    ("ep2-tp2-zero2", 4, "dropless", {**EP2, "tensor": 2, "zero_stage": 2}),
    ("ep2-pp2-capacity", 4, "capacity", {**EP2, "pipeline": 2, "zero_stage": 1}),
    ("ring2-ep4", 4, "dropless", {"expert": 4, "context": 2, "context_method": "ring"}),
    ("sp2-ep2", 4, "capacity", {**EP2, "tensor": 2, "sequence": True}),
    ("ep2-folded", 4, "capacity", {**EP2, "pipeline": 2, "pipeline_schedule": "dualpipev"}),
    ("tp2-pp2", 4, "dropless", {"tensor": 2, "pipeline": 2, "zero_stage": 1}),
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("experts") / "data")


def config_of(
    prefix: Path, kind: str, parallel: dict[str, Any], precision: str = "fp32"
) -> RunConfig:
    """Clipping bites, dropout is on; see test_layouts for epsilon."""
    moe = {"num_experts": 4, "ffn_hidden_size": 48, "balance_loss": 0.1, "z_loss": 0.01}
    return small_config(
        prefix,
        prefix.parent,
        parallel={"zero_persistence_threshold": 0, **parallel},
        model={
            "num_kv_heads": 2,
            "dropout": 0.1,
            "position": "rotary",
            "norm": "rms_norm",
            "activation": "swiglu",
            "moe": {**moe, **KINDS[kind]},
        },
        training={
            "steps": STEPS,
            "precision": precision,
            "gradient_clipping": 0.5,
            # A folded pipeline needs more micro-batches, which must change no number either.
            "micro_batch_size": 1 if "pipeline_schedule" in parallel else 2,
        },
        evaluation={"every_steps": 1},
        optimizer={"learning_rate": 1e-2, "epsilon": 1e-5, "implementation": "torch"},
        loss_scale={"initial_power": 10, "hysteresis": 1},
    )


@pytest.fixture(scope="module")
def single(prefix: Path) -> dict[str, LoggedCurve]:
    """The curves of one process, by kind."""
    return {
        kind: run_distributed(train_curve, 1, config_of(prefix, kind, {"zero_stage": 1}))[0]
        for kind in KINDS
    }


@pytest.mark.parametrize(
    ("name", "world_size", "kind", "parallel"),
    [
        *(pytest.param(*layout, id=layout[0]) for layout in LAYOUTS),
        *(pytest.param(*each, id=each[0], marks=EVERY_LAYOUT) for each in MORE_LAYOUTS),
    ],
)
def test_experts_match_one_process_in_fp32(
    name: str,
    world_size: int,
    kind: str,
    parallel: dict[str, Any],
    prefix: Path,
    single: dict[str, LoggedCurve],
) -> None:
    curves = run_distributed(train_curve, world_size, config_of(prefix, kind, parallel))
    reference = single[kind]
    comparison = compare(reference, curves, FP32_TOLERANCE)
    for kind in ("loss", "gradient norm", "weight"):
        worst = comparison.worst(kind)
        assert worst.relative < FP32_TOLERANCE, worst.describe()
    assert not [each for each in comparison.largest if each.kind == "coverage"]
    for curve in curves:
        assert curve.evaluation == pytest.approx(reference.evaluation, rel=FP32_TOLERANCE)
        assert loads_of(curve) == pytest.approx(loads_of(reference), rel=FP32_TOLERANCE)


def test_one_process_clips_drops_and_loads_unevenly(single: dict[str, LoggedCurve]) -> None:
    """Or the comparisons would show little."""
    for kind, curve in single.items():
        assert curve.losses[-1] < curve.losses[0]
        assert min(norm for norm in curve.norms if norm is not None) > 0.5
        for load in curve.loads:
            assert load is not None
            assert load.max_load > load.mean_max_load > 1 > load.min_load
            assert (load.dropped > 0) == (kind == "capacity")
            assert load.balance_loss > 1


def loads_of(curve: LoggedCurve) -> list[float]:
    """All numbers of all steps' expert loads."""
    return [value for load in curve.loads if load is not None for value in asdict(load).values()]


@pytest.mark.parametrize(
    ("precision", "parallel"),
    [
        ("fp16", {**EP2, "tensor": 2, "zero_stage": 1}),
        ("bf16", {**EP2, "zero_stage": 1}),
        pytest.param("bf16", {**EP2, "pipeline": 2, "zero_stage": 1}, marks=EVERY_LAYOUT),
        pytest.param("fp16", {**EP2, "pipeline": 2, "zero_stage": 0}, marks=EVERY_LAYOUT),
        pytest.param("fp16", {**EP2, "tensor": 2, "zero_stage": 2}, marks=EVERY_LAYOUT),
        pytest.param("bf16", {**EP2, "tensor": 2, "zero_stage": 1}, marks=EVERY_LAYOUT),
        pytest.param("bf16", {**EP2, "tensor": 2, "zero_stage": 2}, marks=EVERY_LAYOUT),
    ],
)
def test_experts_match_one_process_in_16_bits(
    precision: str, parallel: dict[str, Any], prefix: Path
) -> None:
    """With one infinite gradient of an expert, which every rank is told of by its global name."""
    config = config_of(prefix, "dropless", {"zero_stage": 1}, precision)
    (reference,) = run_distributed(train_curve, 1, config, overflow_of_last_expert, False)
    config = config_of(prefix, "dropless", parallel, precision)
    ranks = 2 if parallel == {**EP2, "zero_stage": 1} else 4
    for curve in run_distributed(train_curve, ranks, config, overflow_of_last_expert, False):
        assert curve.skipped == [step == OVERFLOW_STEP for step in range(STEPS)]
        assert curve.overflows[OVERFLOW_STEP] == (
            f"layers.3.mlp.experts.3.down.weight on rank {ranks - 1}"
        )
        assert curve.losses == pytest.approx(reference.losses, rel=TOLERANCE[precision])
        norms = zip(curve.norms, reference.norms, strict=True)
        assert all(
            mine == (other if other is None else pytest.approx(other, rel=TOLERANCE[precision]))
            for mine, other in norms
        )


def overflow_of_last_expert(engine: Engine, step: int) -> None:
    """Make the gradient of the last expert infinite in step OVERFLOW_STEP, on the last rank."""
    if step != OVERFLOW_STEP or engine.mesh.rank != engine.mesh.world.size - 1:
        return
    parameter = [p for p in engine.module.parameters() if ".experts." in shard_of(p).name][-1]

    def explode(gradient: Tensor) -> Tensor:
        handle.remove()
        return torch.full_like(gradient, torch.inf)

    handle = parameter.register_hook(explode)


def test_a_pipeline_stage_without_experts_to_spread_is_refused(prefix: Path) -> None:
    """Where nobody has asked before: stages are balanced by parameters, and the first has a table
    that weighs more than a block with experts."""
    config = config_of(prefix, "dropless", {**EP2, "pipeline": 2})
    model = config.model.model_copy(update={"token_types": 4000})
    with pytest.raises(RankFailure) as caught:
        run_distributed(train_curve, 4, config.model_copy(update={"model": model}))
    assert (
        "parallel.pipeline_partition='parameters': leaves pipeline stage 0 without experts, which "
        "parallel.expert=2 spreads out over the replicas of every pipeline rank; "
        "set it to [2, 2], or parallel.expert=1"
    ) in str(caught.value)
