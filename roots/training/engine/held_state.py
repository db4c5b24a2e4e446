"""What an engine holds on this rank and would save: weights, master weights and moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn

from roots.parallel.shard import shard_of

Named = tuple[str, list[Tensor]]

OPTIMIZER_STATE = "optimizer state"


def held_state(optimizer: Any, module: nn.Module) -> Iterator[Named]:
    """Name and tensors of all that a save writes; nothing is copied, and nothing communicated.

    Weights by their names in the order of the model, then all of the optimizer's. What is on NVMe
    is left out.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from _of_zero_3(optimizer)
        return
    for name, parameter in module.named_parameters():
        yield f"tensor {shard_of(parameter, name).name}", [parameter.detach()]
    yield OPTIMIZER_STATE, _tensors_in(optimizer.state_dict())


def _of_zero_3(optimizer: Any) -> Iterator[Named]:
    """Without the ends of partitions that nobody reads: DeepSpeed never gives them a value."""
    state: list[Tensor] = []
    for index, (parameters, parts, flat) in enumerate(
        zip(
            optimizer.fp16_groups,
            optimizer.fp16_partitioned_groups,
            optimizer.fp32_partitioned_groups_flat,
            strict=True,
        )
    ):
        rank = optimizer._get_sub_group_partition_rank(index)
        lengths = [parameter.ds_tensor.ds_numel for parameter in parameters]
        real = [
            min(length, max(0, parameter.ds_numel - rank * length))
            for parameter, length in zip(parameters, lengths, strict=True)
        ]
        for parameter, part, count in zip(parameters, parts, real, strict=True):
            name = f"tensor {shard_of(parameter).name}"
            yield name, [part.detach().view(-1)[:count]]
        for tensor in (flat, *_tensors_in(optimizer.optimizer.state.get(flat, {}))):
            if tensor.numel() == sum(lengths):
                pieces = tensor.detach().view(-1).split(lengths)
                state += [piece[:count] for piece, count in zip(pieces, real, strict=True)]
    yield OPTIMIZER_STATE, state


def _tensors_in(tree: object) -> list[Tensor]:
    """All tensors in nested mappings and sequences."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [each for value in tree.values() for each in _tensors_in(value)]
    if isinstance(tree, list | tuple):
        return [each for value in tree for each in _tensors_in(value)]
    return []
