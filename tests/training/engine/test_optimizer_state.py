"""What a rank keeps of each parameter under every stage: ranges, and the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from roots.parallel.shard import attach, replicated
from roots.training.engine.optimizer_state import (
    Slice,
    inner_optimizer,
    make_state,
    set_steps_made,
    slice_groups,
    steps_made,
)
from tests.helpers.decoders import fake_axis

SIZES = {"a": (3, 4), "b": (5,)}


def slices(optimizer: Any, module: nn.Module) -> list[Slice]:
    """Of what is all in memory, and so in one group."""
    (group,) = slice_groups(optimizer, module)
    return group


def module_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Module()
    for name, shape in SIZES.items():
        parameter = nn.Parameter(torch.randn(shape).to(dtype))
        attach(parameter, replicated(f"global.{name}", shape), fake_axis(1, 0))
        module.register_parameter(name, parameter)
    return module


def adam_of(keys: Sequence[Tensor], steps: int = 1) -> torch.optim.AdamW:
    adam = torch.optim.AdamW(list(keys), lr=0.1, foreach=False)
    for _ in range(steps):
        for key in keys:
            key.grad = torch.randn_like(key)
        adam.step()
    return adam


def zero_1(kind: Any, ranges: dict[str, tuple[int, int]]) -> tuple[Any, nn.Module]:
    """As DeepSpeed's ZeRO 1 and 2 leave it on a rank that has of each parameter a range or none."""
    module = module_of(torch.bfloat16)
    flat = nn.Parameter(torch.randn(sum(length for _, length in ranges.values()) + 3))
    place = 0
    for name, parameter in module.named_parameters():
        parameter._hp_mapping = None
        if name in ranges:
            start, length = ranges[name]
            parameter._hp_mapping = SimpleNamespace(
                lp_fragment_address=SimpleNamespace(start=start, numel=length),
                hp_fragment_address=SimpleNamespace(start=place, numel=length),
                param_group_index=0,
            )
            place += length
    optimizer = kind.__new__(kind)
    flats = "fp32_groups_flat_partition" if kind is BF16_Optimizer else ""
    setattr(optimizer, flats or "single_partition_of_fp32_groups", [flat])
    optimizer.optimizer = adam_of([flat])
    return optimizer, module


def test_without_zero_everything_is_kept_and_alike_on_all_replicas() -> None:
    module = module_of()
    adam = adam_of(list(module.parameters()))
    found = list(slices(adam, module))
    assert [(each.shard.name, each.start, each.length) for each in found] == [
        ("global.a", 0, 12),
        ("global.b", 0, 5),
    ]
    for each, parameter in zip(found, module.parameters(), strict=True):
        assert each.copies
        assert each.weight.data_ptr() == each.master.data_ptr() == parameter.data_ptr()
        state = each.state(adam)
        assert set(state) == {"exp_avg", "exp_avg_sq"}
        kept = adam.state[parameter]["exp_avg"]
        assert state["exp_avg"].data_ptr() == kept.data_ptr()


@pytest.mark.parametrize("kind", [DeepSpeedZeroOptimizer, BF16_Optimizer])
def test_of_zero_1_and_2_the_range_that_is_mapped_is_kept(kind: Any) -> None:
    """The range lies elsewhere in the parameter than in the flat weights and their moments."""
    optimizer, module = zero_1(kind, {"a": (7, 5), "b": (1, 3)})
    flat = optimizer.optimizer.param_groups[0]["params"][0]
    found = list(slices(optimizer, module))
    assert [(each.start, each.length, each.offset) for each in found] == [(7, 5, 0), (1, 3, 5)]
    for each, parameter in zip(found, module.parameters(), strict=True):
        stop = each.start + each.length
        assert torch.equal(each.weight, parameter.detach().view(-1)[each.start : stop])
        each.master.fill_(4.0)
        assert torch.equal(flat.detach()[each.offset : each.offset + each.length], each.master)
        moments = optimizer.optimizer.state[flat]["exp_avg_sq"]
        expected = moments[each.offset : each.offset + each.length]
        assert torch.equal(each.state(inner_optimizer(optimizer))["exp_avg_sq"], expected)
        assert not each.copies


def test_parameter_of_which_another_rank_has_all_is_left_out() -> None:
    optimizer, module = zero_1(DeepSpeedZeroOptimizer, {"b": (0, 5)})
    assert [each.shard.name for each in slices(optimizer, module)] == ["global.b"]


def zero_3(rank: int, ranks: int) -> tuple[Any, nn.Module]:
    """As DeepSpeed's ZeRO 3 leaves it: every parameter cut evenly, the last part filled up."""
    module = module_of(torch.bfloat16)
    parts, lengths = [], []
    for parameter in module.parameters():
        whole = parameter.detach().view(-1)
        length = -(-whole.numel() // ranks)
        part = torch.full((length,), torch.nan, dtype=whole.dtype)
        mine = whole[rank * length : (rank + 1) * length]
        part[: mine.numel()] = mine
        parameter.ds_numel = whole.numel()
        parameter.ds_tensor = SimpleNamespace(ds_numel=length)
        parts.append(part)
        lengths.append(length)
    kind = DeepSpeedZeroOptimizer_Stage3
    optimizer = kind.__new__(kind)
    flat = nn.Parameter(torch.cat(parts).float())
    optimizer.fp16_groups = [list(module.parameters())]
    optimizer.fp16_partitioned_groups = [parts]
    optimizer.fp32_partitioned_groups_flat = [flat]
    optimizer.swap_optimizer = False
    optimizer._get_sub_group_partition_rank = lambda index: rank
    optimizer.optimizer = adam_of([flat], 0)
    return optimizer, module


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_of_zero_3_all_ranks_together_keep_every_element_once(ranks: int) -> None:
    """And none of the ends that only fill up."""
    seen: dict[str, list[int]] = {f"global.{name}": [] for name in SIZES}
    for rank in range(ranks):
        optimizer, module = zero_3(rank, ranks)
        wholes = {f"global.{name}": each for name, each in module.named_parameters()}
        for each in slices(optimizer, module):
            stop = each.start + each.length
            seen[each.shard.name] += range(each.start, stop)
            expected = wholes[each.shard.name].detach().view(-1)[each.start : stop]
            assert torch.equal(each.weight, expected)
            assert torch.equal(each.master, expected.float())
    assert seen == {"global.a": list(range(12)), "global.b": list(range(5))}


def on_nvme() -> tuple[Any, nn.Module, list[Tensor]]:
    """ZeRO 3 with two groups that are read from `disk` into the same memory, one at a time."""
    optimizer, module = zero_3(0, 1)
    parameters, (parts,) = optimizer.fp16_groups[0], optimizer.fp16_partitioned_groups
    optimizer.fp16_groups = [[each] for each in parameters]
    optimizer.fp16_partitioned_groups = [[each] for each in parts]
    disk, memory = [each.float() for each in parts], torch.empty(12)
    keys = [nn.Parameter(torch.empty(0)) for _ in parts]
    optimizer.fp32_partitioned_groups_flat = keys
    optimizer.optimizer = torch.optim.AdamW(keys)

    def read(index: int) -> None:
        keys[index].data = memory[: len(disk[index])].copy_(disk[index])

    def write(index: int) -> None:
        disk[index].copy_(keys[index].data)
        release(index)

    def release(index: int) -> None:
        keys[index].data = torch.empty(0)

    optimizer.swap_optimizer = True
    optimizer._swappable_optimizer_subgroup = lambda index: True
    optimizer._optimizer_states_and_gradient_swap_in = read
    optimizer._optimizer_states_and_gradient_swap_out = write
    optimizer._release_swap_buffers = release
    return optimizer, module, disk


@pytest.mark.parametrize("changing", [False, True])
def test_groups_on_nvme_are_in_memory_one_after_the_other(changing: bool) -> None:
    """They are only written back where they are to change."""
    optimizer, module, disk = on_nvme()
    before = [each.clone() for each in disk]
    names = []
    for group in slice_groups(optimizer, module, changing=changing):
        (part,) = group
        names.append(part.shard.name)
        assert torch.equal(part.master, part.weight.float())
        part.master.add_(1)
    assert names == ["global.a", "global.b"]
    for after, original in zip(disk, before, strict=True):
        assert torch.equal(after, original + 1 if changing else original)
    assert all(key.numel() == 0 for key in optimizer.fp32_partitioned_groups_flat)


def test_state_that_is_not_there_yet_is_made_of_zeros() -> None:
    """Where there is some it stays."""
    module = module_of()
    adam = torch.optim.AdamW(module.parameters(), lr=0.1)
    first, second = slices(adam, module)
    adam.state[second.key]["exp_avg"] = torch.ones(5)
    for part in (first, second):
        make_state(adam, part, ["exp_avg", "exp_avg_sq"])
    assert first.state(adam)["exp_avg"].tolist() == [0.0] * 12
    assert second.state(adam)["exp_avg"].tolist() == [1.0] * 5
    assert second.state(adam)["exp_avg_sq"].tolist() == [0.0] * 5


class CountsInGroups(torch.optim.Optimizer):
    """Adam as DeepSpeed and apex have it: numbers, in the state or in the group."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        """Nothing."""


def test_updates_are_counted_as_the_implementation_counts_them() -> None:
    key = nn.Parameter(torch.zeros(2))
    adam = adam_of([key], 3)
    assert steps_made(adam) == 3
    set_steps_made(adam, 8)
    count = adam.state[key]["step"]
    assert (float(count), count.dtype, steps_made(adam)) == (8.0, torch.float32, 8)
    other = CountsInGroups([key])
    other.state[key]["exp_avg"] = torch.zeros(2)
    assert steps_made(other) == 0
    set_steps_made(other, 8)
    assert (other.state[key]["step"], other.param_groups[0]["step"], steps_made(other)) == (8, 8, 8)
