"""Numbers of routers over layers, micro-batches and ranks, from counts that are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from roots.models.moe.layer import MoE
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from roots.training.router_statistics import ExpertLoad, RouterWatch
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.distributed import run_distributed

ACCUMULATION = 4


def watched(layers: int) -> tuple[RouterWatch, list[MoE]]:
    """A watch over so many layers of three experts, and these."""
    moe: dict[str, Any] = {"num_experts": 3, "top_k": 2, "ffn_hidden_size": 8}
    model = small_model(num_layers=layers, moe=moe, activation="swiglu", bias=False)
    decoder: nn.Module = small_decoder(model)
    found = [each for each in decoder.modules() if isinstance(each, MoE)]
    return RouterWatch(decoder, ACCUMULATION), found


def entry(counts: list[int], dropped: int, balance: float, z: float) -> torch.Tensor:
    """What a layer records of one micro-batch."""
    return torch.tensor([*counts, dropped, balance, z, 1.0], dtype=torch.float64)


def record_two_micro_batches(layers: list[MoE]) -> None:
    for layer in layers:
        layer.record.add(entry([6, 0, 2], 1, 1.25, 3.0))
        layer.record.add(entry([3, 4, 1], 2, 1.75, 5.0))


def test_router_losses_are_scaled_as_the_loss_of_a_micro_batch() -> None:
    """By the loss scale, and divided by the micro-batches over which gradients add up."""
    watch, layers = watched(2)
    record_two_micro_batches(layers)
    watch.start_step(1024.0)
    for layer in layers:
        assert layer.record.scale == 1024.0 / ACCUMULATION
        assert layer.record.total is None


def test_load_is_over_micro_batches_and_layers() -> None:
    watch, layers = watched(2)
    record_two_micro_batches(layers[:1])
    layers[1].record.add(entry([2, 2, 4], 0, 1.0, 1.0))
    # Of the first layer 9, 4 and 3 of 16 choices, of which 3 were dropped; of the second 8.
    load = watch.load(Mesh.single())
    assert load.max_load == pytest.approx(9 / (16 / 3))
    assert load.mean_max_load == pytest.approx((9 / (16 / 3) + 4 / (8 / 3)) / 2)
    assert load.min_load == pytest.approx(3 / (16 / 3))
    assert load.dropped == pytest.approx((3 / 16 + 0) / 2)
    assert load.balance_loss == pytest.approx((1.5 + 1.0) / 2)
    assert load.z_loss == pytest.approx((4.0 + 1.0) / 2)


def of_both_ranks(rank: int, world_size: int) -> list[ExpertLoad]:
    """The load where the ranks share samples, and where they are stages."""
    found = []
    for topology in (Topology(context=world_size), Topology(pipeline=world_size)):
        watch, (layer,) = watched(1)
        layer.record.add(entry([[4, 0, 0], [0, 1, 3]][rank], 2 * rank, 1.0 + rank, 2.0))
        found.append(watch.load(Mesh.create(topology)))
    return found


@pytest.mark.distributed
def test_load_is_over_all_ranks() -> None:
    for shared, stages in run_distributed(of_both_ranks, 2):
        # One layer, of which the ranks saw 4, 1 and 3 tokens together.
        assert shared.max_load == shared.mean_max_load == pytest.approx(4 / (8 / 3))
        assert shared.min_load == pytest.approx(1 / (8 / 3))
        assert (shared.dropped, shared.balance_loss) == (2 / 8, 1.5)
        # Two layers, one on each rank.
        assert stages.max_load == pytest.approx(4 / (4 / 3))
        assert stages.mean_max_load == pytest.approx((4 + 3) / 2 / (4 / 3))
        assert (stages.min_load, stages.dropped, stages.balance_loss) == (0.0, 2 / 8, 1.5)
