"""Every layout gives the numbers of one process: real Gloo ranks, the real engine, many steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.config import RunConfig
from roots.verify.compare import compare
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import (
    OVERFLOW_STEP,
    LoggedCurve,
    overflow_on_last_rank,
    train_curve,
)

# In 16 bits few, and so a tolerance that twenty would not keep: rounding grows with every update.
STEPS = {"fp32": 20, "fp16": 8, "bf16": 8}
FP32_TOLERANCE = 1e-5
# One unit in the last place, twice what rounding does to a gradient norm in so many steps.
FP16_TOLERANCE = 2.0**-10
BF16_TOLERANCE = 2.0**-7
# The gradient that is made infinite: of the first parameter of the last rank's stage, which in the
# last of several is its copy of the embedding's.
FIRST_PARAMETER = "embedding.tokens.weight"
FIRST_OF_LAST_STAGE = "head.weight"
# A V of two ranks turns on the second, which holds the two stages in the middle.
FIRST_OF_THE_TURN = "layers.1.attention_norm.weight"
BF16_LAYOUTS = ("tp2-zero0", "pp2-zero1", "tp2-pp2-zero1", "dp2-zero2", "dp2-zero3")

# Rounding errors grow with every update: in fp16 the updates are smaller, the tolerance stays.
LEARNING_RATE = {"fp32": 1e-2, "fp16": 3e-3, "bf16": 3e-3}

# name, world size, fields of `parallel`
LAYOUTS: list[tuple[str, int, dict[str, Any]]] = [
    (f"{name}-zero{stage}", world_size, {**degrees, "zero_stage": stage})
    for name, world_size, degrees in (
        ("tp2", 2, {"tensor": 2}),
        ("pp2", 2, {"pipeline": 2}),
        ("dp2", 2, {}),
        ("tp2-pp2", 4, {"tensor": 2, "pipeline": 2}),
        ("tp2-dp2", 4, {"tensor": 2}),
        ("pp2-dp2", 4, {"pipeline": 2}),
    )
    for stage in (0, 1)
] + [
    ("dp2-zero2", 2, {"zero_stage": 2}),
    ("dp2-zero3", 2, {"zero_stage": 3}),
    ("pp4-zero1", 4, {"pipeline": 4, "zero_stage": 1}),
    ("tp2-dp2-zero2", 4, {"tensor": 2, "zero_stage": 2}),
    ("tp2-dp2-zero3", 4, {"tensor": 2, "zero_stage": 3}),
    ("tp2-pp2-recompute", 4, {"tensor": 2, "pipeline": 2, "recompute": "full"}),
    ("pp2-folded", 2, {"pipeline": 2, "pipeline_schedule": "dualpipev"}),
    ("dp2-zero2-offload", 2, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    (
        "dp2-zero3-offload",
        2,
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    ),
]
IDS = [name for name, _, _ in LAYOUTS]
# In fp32 tests/parallel/test_table.py has the axes of the table; here is what is no axis of it.
FP32_LAYOUTS = [
    ("pp2-uniform", 2, {"pipeline": 2, "pipeline_partition": "uniform"}),
    ("pp2-uneven", 2, {"pipeline": 2, "pipeline_partition": [4, 1], "recompute": "full"}),
    (
        "pp2-folded-uneven",
        2,
        {"pipeline": 2, "pipeline_schedule": "dualpipev", "pipeline_partition": [1, 2, 1, 1]},
    ),
    ("dp2-zero2-offload", 2, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    (
        "dp2-zero3-offload",
        2,
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    ),
    ("dp4-zero3-hpz2", 4, {"zero_stage": 3, "zero_hpz_partition_size": 2}),
    ("dp2-zero1-every2", 2, {"recompute": "full", "recompute_every": 2}),
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("layouts") / "data")


def config_of(prefix: Path, parallel: dict[str, Any], precision: str = "fp32") -> RunConfig:
    """Clipping bites, dropout is on, heads are grouped and the embedding is tied.

    Adam divides a gradient by its own size. For one that is zero but for rounding, or nearly, that
    is noise divided by noise, and biases, which start at zero, are nothing but the sum of updates:
    with epsilon 1e-6 two layouts differ by up to 1.4e-5 in them, whichever implementation of the
    ops runs, plain torch's too; with 1e-5 by 4e-6.
    """
    return small_config(
        prefix,
        prefix.parent,
        parallel={"zero_persistence_threshold": 0, **parallel},
        model={
            "num_layers": 5 if precision == "fp32" else 4,
            "num_kv_heads": 2,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "position": "rotary",
            "norm": "rms_norm",
            "activation": "swiglu",
        },
        training={"steps": STEPS[precision], "precision": precision, "gradient_clipping": 0.5},
        evaluation={"every_steps": 1},
        # torch's AdamW also where the state is offloaded: DeepSpeed's of the host has its own test.
        optimizer={
            "learning_rate": LEARNING_RATE[precision],
            "epsilon": 1e-5,
            "implementation": "torch",
        },
        loss_scale={"initial_power": 10, "hysteresis": 1},
    )


@pytest.fixture(scope="module")
def single(prefix: Path) -> Callable[[str], LoggedCurve]:
    """The curve of one process in a precision; in fp16 it has an overflow."""

    @cache
    def curve(precision: str) -> LoggedCurve:
        config = config_of(prefix, {"zero_stage": 1}, precision)
        tamper = overflow_on_last_rank if precision == "fp16" else None
        (found,) = run_distributed(train_curve, 1, config, tamper, precision == "fp32")
        return found

    return curve


def test_one_process_learns(single: Callable[[str], LoggedCurve]) -> None:
    """The curves that everything is compared with must move, and clip."""
    curve = single("fp32")
    assert curve.losses[-1] < 0.9 * curve.losses[0]
    assert min(norm for norm in curve.norms if norm is not None) > 0.5


@pytest.mark.parametrize(
    ("name", "world_size", "parallel"), FP32_LAYOUTS, ids=[name for name, _, _ in FP32_LAYOUTS]
)
def test_layout_matches_one_process_in_fp32(
    name: str,
    world_size: int,
    parallel: dict[str, Any],
    prefix: Path,
    single: Callable[[str], LoggedCurve],
) -> None:
    """Losses, norms and weights over 20 steps; what they were evaluated to; alike on all ranks."""
    curves = run_distributed(train_curve, world_size, config_of(prefix, parallel))
    reference = single("fp32")
    comparison = compare(reference, curves, FP32_TOLERANCE)
    for kind in ("loss", "gradient norm", "weight"):
        worst = comparison.worst(kind)
        assert worst.relative < FP32_TOLERANCE, worst.describe()
    for curve in curves:
        assert curve.evaluation == pytest.approx(reference.evaluation, rel=FP32_TOLERANCE)
    assert torch.tensor([curve.losses for curve in curves]).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize(("name", "world_size", "parallel"), LAYOUTS, ids=IDS)
def test_layout_matches_one_process_in_fp16_with_one_overflow(
    name: str,
    world_size: int,
    parallel: dict[str, Any],
    prefix: Path,
    single: Callable[[str], LoggedCurve],
) -> None:
    """An infinite gradient on one rank: every rank skips, halves the scale and goes on alike."""
    config = config_of(prefix, parallel, "fp16")
    curves = run_distributed(train_curve, world_size, config, overflow_on_last_rank, False)
    reference = single("fp16")
    for curve in curves:
        assert curve.skipped == [step == OVERFLOW_STEP for step in range(STEPS["fp16"])]
        assert curve.scales == [
            2.0**10 if step <= OVERFLOW_STEP else 2.0**9 for step in range(STEPS["fp16"])
        ]
        assert_attributed(curve, parallel, world_size)
        assert curve.losses == pytest.approx(reference.losses, rel=FP16_TOLERANCE)
        assert clean(curve.norms) == pytest.approx(clean(reference.norms), rel=FP16_TOLERANCE)
        assert curve.evaluation == pytest.approx(reference.evaluation, rel=FP16_TOLERANCE)
    assert torch.tensor([curve.losses for curve in curves]).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize("name", BF16_LAYOUTS)
def test_layout_matches_one_process_in_bf16(
    name: str, prefix: Path, single: Callable[[str], LoggedCurve]
) -> None:
    world_size, parallel = next((size, fields) for n, size, fields in LAYOUTS if n == name)
    curves = run_distributed(
        train_curve, world_size, config_of(prefix, parallel, "bf16"), None, False
    )
    for curve in curves:
        assert curve.losses == pytest.approx(single("bf16").losses, rel=BF16_TOLERANCE)
        assert curve.norms == pytest.approx(single("bf16").norms, rel=BF16_TOLERANCE)
    assert torch.tensor([curve.losses for curve in curves]).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize("name", BF16_LAYOUTS)
def test_infinite_gradient_in_bf16_is_attributed(name: str, prefix: Path) -> None:
    """Without loss scaling too the step is left out and everyone is told whose gradient it was."""
    world_size, parallel = next((size, fields) for n, size, fields in LAYOUTS if n == name)
    config = config_of(prefix, parallel, "bf16")
    training = config.training.model_copy(update={"steps": OVERFLOW_STEP + 2})
    config = config.model_copy(update={"training": training})
    for curve in run_distributed(train_curve, world_size, config, overflow_on_last_rank, False):
        assert curve.skipped == [step == OVERFLOW_STEP for step in range(OVERFLOW_STEP + 2)]
        assert_attributed(curve, parallel, world_size)


def assert_attributed(curve: LoggedCurve, parallel: dict[str, Any], world_size: int) -> None:
    """The parameter and the one rank whose gradient was infinite are told, and logged."""
    (line,) = curve.log
    culprit = curve.overflows[OVERFLOW_STEP]
    assert [step for step, text in enumerate(curve.overflows) if text] == [OVERFLOW_STEP]
    assert line == f"overflow: the first gradient that is not finite is that of {culprit}"
    name = FIRST_OF_LAST_STAGE if "pipeline" in parallel else FIRST_PARAMETER
    if "pipeline_schedule" in parallel:
        name = FIRST_OF_THE_TURN
    assert culprit == f"{name} on rank {world_size - 1}"


def clean(norms: list[float | None]) -> list[float]:
    """Norms of the steps that were applied."""
    assert [step for step, norm in enumerate(norms) if norm is None] == [OVERFLOW_STEP]
    return [norm for norm in norms if norm is not None]
