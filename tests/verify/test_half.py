"""16 bits: an honest layout is within its bounds, and mistakes that only 16 bits make are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from roots.config import RunConfig, parse_config
from roots.config.shrink import in_fp32, one_process, shrink
from roots.training.engine.step import Engine
from roots.verify.compare import Comparison, Curve
from roots.verify.half import in_16_bits
from roots.verify.proof import write_data
from tests.helpers.distributed import run_distributed
from tests.parallel.layouts import train_curve

STEPS = 3
NORM, ROUTER = "layers.1.mlp_norm.weight", "layers.0.mlp.router.weight"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Experts, their router's losses, and clipping that bites; the scale doubles on the way."""
    moe = {"num_experts": 8, "balance_loss": 1.0, "z_loss": 0.1}
    config = parse_config(
        {
            "model": {"moe": moe},
            "parallel": {"tensor": 2, "sequence": True},
            "training": {"gradient_clipping": 0.1},
        }
    )
    made = shrink(config, 2, write_data(tmp_path_factory.mktemp("half")), "fp16")
    training = made.training.model_copy(update={"steps": STEPS})
    scale = made.loss_scale.model_copy(update={"window": 1})
    return made.model_copy(update={"training": training, "loss_scale": scale})


@pytest.fixture(scope="module")
def references(small: RunConfig) -> tuple[Curve, Curve]:
    """One process in fp16, and in fp32."""
    alone = one_process(small)
    (half,) = run_distributed(train_curve, 1, alone)
    (exact,) = run_distributed(train_curve, 1, in_fp32(alone))
    return half, exact


def router_losses_unscaled(engine: Engine, step: int) -> None:
    """The losses of routers do not take part in the loss scale, by which gradients are divided."""
    start: Any = engine._routers.start_step
    if step == 0:
        engine._routers.start_step = lambda loss_scale: start(1.0)  # type: ignore[method-assign]


def layout_faults(engine: Engine, step: int) -> None:
    """A norm under sequence parallelism whose gradient is not summed over tensor ranks, in the
    first step; every rank clips by a norm of its own, in the second."""
    norm: Any = engine.module.get_submodule(NORM.removesuffix(".weight"))
    norm.apart = None if step == 0 else engine.mesh.tensor
    optimizer = engine.deepspeed.optimizer
    own = (0.7, 1.3)[engine.mesh.rank]

    def clip(gradients: list[Tensor], norm: Tensor) -> None:
        type(optimizer).unscale_and_clip_grads(optimizer, gradients, norm * own)

    if step == 1:
        optimizer.unscale_and_clip_grads = clip
    elif step == 2:
        del optimizer.unscale_and_clip_grads


def beyond(comparison: Comparison) -> set[tuple[str, str]]:
    """What differs."""
    return {
        (each.kind, each.name)
        for each in comparison.largest
        if not each.relative <= comparison.tolerance
    }


def until(curve: Curve, step: int) -> Curve:
    """Its first steps."""
    return replace(curve, losses=curve.losses[:step], steps=curve.steps[:step], evaluation=0.0)


@pytest.mark.distributed
def test_an_honest_layout_and_one_process_agree_with_fp32(
    small: RunConfig, references: tuple[Curve, Curve]
) -> None:
    """The scale doubles after every step, and no gradient is divided by one that it was not made
    with; an update by half a gradient would differ."""
    half, exact = references
    assert half.scales == [1024.0, 2048.0, 4096.0]
    curves = run_distributed(train_curve, 2, small)
    comparison, against_fp32 = in_16_bits(half, exact, curves)
    for each in (comparison, *against_fp32):
        assert each.equal, each.first
        assert max(d.relative for d in each.largest) < each.tolerance / 2
    # Skipped steps and scales have to agree on every rank.
    other = replace(curves[1], scales=[1024.0, 2048.0, 2048.0], skipped=[False, False, True])
    faulty, _ = in_16_bits(half, exact, [curves[0], other])
    assert beyond(faulty) == {("loss scale", ""), ("skipped step", "")}
    assert faulty.worst("loss scale").ranks == (1,)


@pytest.mark.distributed
def test_router_losses_outside_the_loss_scale_differ_from_fp32(
    small: RunConfig, references: tuple[Curve, Curve]
) -> None:
    """In every layout alike, so that no two runs in fp16 differ."""
    (wrong,) = run_distributed(train_curve, 1, one_process(small), router_losses_unscaled)
    comparison, (alone, layout) = in_16_bits(wrong, references[1], [wrong])
    assert comparison.equal
    for each in (alone, layout):
        assert each.first is not None
        found = {name for kind, name in beyond(each) if kind == "gradient"}
        assert ROUTER in found


@pytest.mark.distributed
def test_a_missing_sum_and_a_local_norm_differ_from_one_process(
    small: RunConfig, references: tuple[Curve, Curve]
) -> None:
    half, exact = references
    curves = run_distributed(train_curve, 2, small, layout_faults)
    first, _ = in_16_bits(until(half, 1), until(exact, 1), [until(each, 1) for each in curves])
    assert ("gradient", NORM) in beyond(first)
    # What of the second step is more than a consequence of the first: every gradient.
    second, _ = in_16_bits(until(half, 2), until(exact, 2), [until(each, 2) for each in curves])
    gradients = {name for kind, name in beyond(second) if kind == "gradient"}
    assert gradients == {piece.shard.name for piece in half.steps[0]}
