"""Layouts that cut samples, by sequence and context parallelism, give the numbers of one process.

The checks are those of test_layouts.py, on a model with everything that such a cut could break:
learned or rotary positions, biases, dropout, documents, and fewer key heads than ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from roots.config import RunConfig
from roots.verify.compare import compare
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import LoggedCurve as Curve
from tests.parallel.layouts import train_curve

STEPS = 6
TOLERANCE = {"fp32": 1e-5, "fp16": 8 * 2.0**-10, "bf16": 8 * 2.0**-7}
RING: dict[str, Any] = {"context_method": "ring"}
SP: dict[str, Any] = {"tensor": 2, "sequence": True}

# name, world size, fields of `parallel`, precision
LAYOUTS: list[tuple[str, int, dict[str, Any], str]] = [
    ("one", 1, {}, "fp32"),
    ("one-fp16", 1, {}, "fp16"),
    ("one-ring", 1, RING, "fp32"),
    ("one-ring-bf16", 1, RING, "bf16"),
    ("tp2-sp-zero0", 2, {**SP, "zero_stage": 0}, "fp32"),
    ("tp2-sp-fp16", 2, SP, "fp16"),
    ("cp2-ulysses", 2, {"context": 2}, "fp32"),
    ("cp2-ring", 2, {**RING, "context": 2}, "fp32"),
    ("cp2-ring-bf16", 2, {**RING, "context": 2}, "bf16"),
    ("tp2-pp2-sp", 4, {**SP, "pipeline": 2, "recompute": "full"}, "fp32"),
    ("tp2-dp2-sp-zero3", 4, {**SP, "zero_stage": 3}, "fp32"),
    ("tp2-cp2-ulysses-sp", 4, {**SP, "context": 2}, "fp32"),
    ("tp2-cp2-ring-sp", 4, {**SP, **RING, "context": 2}, "fp32"),
    ("cp2-dp2-ring-zero1", 4, {**RING, "context": 2, "recompute": "full"}, "fp32"),
    ("cp2-dp2-ulysses-zero2", 4, {"context": 2, "zero_stage": 2}, "fp32"),
    ("cp2-dp2-ring-zero3", 4, {**RING, "context": 2, "zero_stage": 3}, "fp32"),
    ("cp2-pp2-ulysses", 4, {"context": 2, "pipeline": 2}, "fp32"),
    ("cp2-pp2-ring-zero0", 4, {**RING, "context": 2, "pipeline": 2, "zero_stage": 0}, "fp32"),
]
Curves = Callable[[str], list[Curve]]


def config_of(prefix: Path, parallel: dict[str, Any], precision: str) -> RunConfig:
    """Rotary positions with a ring, which has no attention dropout; learned ones without."""
    ring = parallel.get("context_method") == "ring"
    return small_config(
        prefix,
        prefix.parent,
        parallel={"zero_persistence_threshold": 0, **parallel},
        model={
            "num_kv_heads": 2,
            "dropout": 0.1,
            "attention_dropout": 0.0 if ring else 0.1,
            "position": "rotary" if ring else "learned",
            "qk_norm": ring,
            "window": 9 if ring else None,
        },
        data={"reset_positions": True},
        training={"steps": STEPS, "precision": precision, "gradient_clipping": 0.5},
        evaluation={"every_steps": 1},
        optimizer={
            "learning_rate": 1e-2 if precision == "fp32" else 3e-3,
            "epsilon": 1e-5,
            "implementation": "torch",
        },
        loss_scale={"initial_power": 10, "hysteresis": 1},
    )


def train_all(rank: int, world_size: int, configs: list[RunConfig]) -> list[Curve]:
    """One layout after the other in the same processes, whose start costs more than six steps."""
    return [
        train_curve(rank, world_size, config, None, config.training.precision == "fp32")
        for config in configs
    ]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """From the name of a layout to what its ranks report."""
    prefix = write_dataset(tmp_path_factory.mktemp("sequence_layouts") / "data")

    @cache
    def of_size(world_size: int) -> dict[str, list[Curve]]:
        chosen = [layout for layout in LAYOUTS if layout[1] == world_size]
        configs = [config_of(prefix, parallel, precision) for _, _, parallel, precision in chosen]
        ranks = run_distributed(train_all, world_size, configs, timeout_seconds=600)
        names = [name for name, *_ in chosen]
        return {name: [rank[i] for rank in ranks] for i, name in enumerate(names)}

    sizes = {name: size for name, size, *_ in LAYOUTS}
    return lambda name: of_size(sizes[name])[name]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name, size, _, precision in LAYOUTS if size > 1],
)
def test_layout_matches_one_process(name: str, precision: str, curves: Curves) -> None:
    kind = "one-ring" if "ring" in name else "one"
    (reference,) = curves(kind if precision == "fp32" else f"{kind}-{precision}")
    assert reference.losses[-1] < reference.losses[0]
    tolerance = TOLERANCE[precision]
    for curve in curves(name):
        assert curve.losses == pytest.approx(reference.losses, rel=tolerance)
        assert curve.norms == pytest.approx(reference.norms, rel=tolerance)
        assert curve.evaluation == pytest.approx(reference.evaluation, rel=tolerance)
        assert curve.losses == curves(name)[0].losses
    if precision == "fp32":
        worst = compare(reference, curves(name), tolerance).worst("weight")
        assert worst.relative < tolerance, worst.describe()
