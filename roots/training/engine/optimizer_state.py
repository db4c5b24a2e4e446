"""What DeepSpeed's optimizers keep on this rank of each parameter, as views, whatever the stage.

A stage of ZeRO flattens the parameters of a group and leaves a range of that to each replica. What
belongs to one parameter is a range of it, in the flat fp32 weights and, at the same place, in
every tensor of the inner optimizer's state (Adam's two moments).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from roots.parallel.shard import Shard, shard_of


@dataclass(frozen=True)
class Slice:
    """The part of one parameter whose fp32 weights and moments this rank keeps.

    start:  of the part in the flattened local parameter
    weight: the part of the parameter itself, [length], in the dtype of the model
    master: the same in fp32, [length]; of an fp32 model it may be the same memory
    key:    what the inner optimizer keeps state for, [anything]; the part begins at `offset` there
    copies: every replica keeps the same, because there is no ZeRO
    """

    shard: Shard
    start: int
    weight: Tensor
    master: Tensor
    key: Tensor
    offset: int
    copies: bool = False

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.master.numel()

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The part in every tensor of the inner optimizer's state: views, by the names there."""
        return {
            name: value.detach().view(-1).narrow(0, self.offset, self.length)
            for name, value in optimizer.state.get(self.key, {}).items()
            if torch.is_tensor(value) and value.numel() == self.key.numel() and name != "step"
        }


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer below DeepSpeed's, which is the same without ZeRO."""
    wrapped = (BF16_Optimizer, DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3)
    inner = optimizer.optimizer if isinstance(optimizer, wrapped) else optimizer
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def slice_groups(
    optimizer: Any, module: nn.Module, *, changing: bool = False
) -> Iterator[list[Slice]]:
    """Every part that this rank keeps, in an order that only depends on the model and the stage.

    All are in one group, but for what is on NVMe: that is in memory group by group, so that views
    are good until the next group is asked for. `changing`: what is written to them is to last.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from _of_zero_3(optimizer, changing)
    elif isinstance(optimizer, BF16_Optimizer):
        yield list(_of_mapped(module, optimizer.fp32_groups_flat_partition))
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        yield list(_of_mapped(module, optimizer.single_partition_of_fp32_groups))
    else:
        named = ((shard_of(each, name), each) for name, each in module.named_parameters())
        flats = ((shard, each, each.detach().view(-1)) for shard, each in named)
        yield [Slice(shard, 0, flat, flat, each, 0, copies=True) for shard, each, flat in flats]


def _of_mapped(module: nn.Module, flats: list[Tensor]) -> Iterator[Slice]:
    """ZeRO 1 and 2: DeepSpeed notes at each parameter which part of it this rank has."""
    for name, parameter in module.named_parameters():
        found = parameter._hp_mapping  # type: ignore[attr-defined]  # of DeepSpeed
        if found is None:
            continue
        start, length = found.lp_fragment_address.start, found.lp_fragment_address.numel
        offset = found.hp_fragment_address.start
        key = flats[found.param_group_index]
        yield Slice(
            shard=shard_of(parameter, name),
            start=start,
            weight=parameter.detach().view(-1).narrow(0, start, length),
            master=key.detach().narrow(0, offset, length),
            key=key,
            offset=offset,
        )


def _of_zero_3(optimizer: Any, changing: bool) -> Iterator[list[Slice]]:
    if not optimizer.swap_optimizer:
        groups = range(len(optimizer.fp16_groups))
        yield [part for index in groups for part in _of_group(optimizer, index)]
        return
    for index in range(len(optimizer.fp16_groups)):
        with _at_hand(optimizer, index, changing):
            yield list(_of_group(optimizer, index))


def _of_group(optimizer: Any, index: int) -> Iterator[Slice]:
    """Every parameter is cut evenly; the ends that nobody reads are left out."""
    rank = optimizer._get_sub_group_partition_rank(index)
    key, offset = optimizer.fp32_partitioned_groups_flat[index], 0
    parts = optimizer.fp16_partitioned_groups[index]
    for parameter, part in zip(optimizer.fp16_groups[index], parts, strict=True):
        length = parameter.ds_tensor.ds_numel
        start = rank * length
        count = min(length, max(0, parameter.ds_numel - start))
        if count:
            yield Slice(
                shard=shard_of(parameter),
                start=start,
                weight=part.detach().view(-1)[:count],
                master=key.detach().narrow(0, offset, count),
                key=key,
                offset=offset,
            )
        offset += length


@contextmanager
def _at_hand(optimizer: Any, index: int, changing: bool) -> Iterator[None]:
    """Within it a group's state is in memory, if it lives on NVMe; written back if it changes."""
    swapped = optimizer._swappable_optimizer_subgroup(index)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
    finally:
        if swapped and changing:
            optimizer._optimizer_states_and_gradient_swap_out(index)
        elif swapped:
            optimizer._release_swap_buffers(index)


def make_state(optimizer: Any, part: Slice, names: list[str]) -> None:
    """Give the inner optimizer zeros under `names` where it has made no step yet."""
    state = inner_optimizer(optimizer).state[part.key]
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(part.key, requires_grad=False)


def link_state(optimizer: Any) -> None:
    """Tell DeepSpeed of state that it has not made itself."""
    if isinstance(optimizer, BF16_Optimizer | DeepSpeedZeroOptimizer):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def steps_made(optimizer: Any) -> int:
    """How many updates Adam counts."""
    inner = inner_optimizer(optimizer)
    counts = [state["step"] for state in inner.state.values() if "step" in state]
    counts += [group["step"] for group in inner.param_groups if "step" in group]
    return int(counts[0]) if counts else 0


def set_steps_made(optimizer: Any, count: int) -> None:
    """Let Adam count from `count`, as the implementation does.

    torch keeps a tensor a parameter, DeepSpeed's a number a parameter, apex one a group.
    """
    inner = inner_optimizer(optimizer)
    for state in inner.state.values():
        if isinstance(inner, torch.optim.AdamW):
            place = state["exp_avg"].device
            state["step"] = torch.tensor(float(count), dtype=torch.float32, device=place)
        else:
            state["step"] = count
    if not isinstance(inner, torch.optim.AdamW):
        for group in inner.param_groups:
            group["step"] = count
