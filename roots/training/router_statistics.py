"""What the routers of a model did in a step, over all layers and ranks.

Legend: E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roots.models.moe.layer import MoE
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, all_reduce_sum


@dataclass(frozen=True)
class ExpertLoad:
    """The load of one step, written into metrics.jsonl.

    max_load:        tokens of the most used expert over the mean of its layer, worst layer
    mean_max_load:   the same, mean over layers
    min_load:        tokens of the least used expert over the mean of its layer, worst layer
    dropped:         share of choices dropped by the capacity, all layers
    balance_loss:    mean over layers, 1 at an even load, without its weight
    z_loss:          mean over layers, without its weight
    """

    max_load: float
    mean_max_load: float
    min_load: float
    dropped: float
    balance_loss: float
    z_loss: float


class RouterWatch:
    """The routers on this rank: told of the scale before a step, asked for their load after it."""

    def __init__(self, module: nn.Module, accumulation: int) -> None:
        self._records = [each.record for each in module.modules() if isinstance(each, MoE)]
        self._accumulation = accumulation

    def start_step(self, loss_scale: float) -> None:
        """Scale auxiliary losses as the engine scales the loss of each micro-batch."""
        for record in self._records:
            record.scale = loss_scale / self._accumulation
            record.take()

    def load(self, mesh: Mesh) -> ExpertLoad:
        """The load of the step just done; every rank must call, of a model that has experts.

        Communication: an all-reduce over the replica axis, a gather of numbers over the pipeline.
        """
        totals = [record.take() for record in self._records]
        found = torch.stack([each for each in totals if each is not None]) if totals else None
        rows: list[list[float]] = []
        if found is not None:
            rows = _numbers(all_reduce_sum(mesh.replica, found)).tolist()
        layers = [row for part in all_gather_object(mesh.pipeline, rows) for row in part]
        largest, least, dropped, balance, z = zip(*layers, strict=True)
        return ExpertLoad(
            max_load=max(largest),
            mean_max_load=sum(largest) / len(layers),
            min_load=min(least),
            dropped=sum(dropped) / len(layers),
            balance_loss=sum(balance) / len(layers),
            z_loss=sum(z) / len(layers),
        )


def _numbers(totals: Tensor) -> Tensor:
    """Per layer: largest and least load over the mean, share dropped, mean balance and z loss."""
    counts_LE, dropped, balance, z, times = (
        totals[:, :-4],
        *(totals[:, column] for column in range(-4, 0)),
    )
    choices = counts_LE.sum(dim=1)
    mean = choices / counts_LE.shape[1]
    parts = [
        counts_LE.amax(dim=1) / mean,
        counts_LE.amin(dim=1) / mean,
        dropped / choices,
        balance / times,
        z / times,
    ]
    return torch.stack(parts, dim=1)
