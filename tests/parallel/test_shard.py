"""Shard records: what a rank holds of a global tensor, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roots.errors import RootsError
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.shard import (
    Shard,
    attach,
    chunked,
    even,
    gather_full,
    replicated,
    shard_of,
    slice_full,
)
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed


def _axis(size: int, rank: int) -> Axis:
    """An axis for arithmetic alone; it has no group to talk to."""
    return Axis("tensor", size, rank, tuple(range(size)))


def test_even_shard_is_one_contiguous_interval() -> None:
    shard = even("w", (8, 3), 0, _axis(4, 2))
    assert shard == Shard("w", (8, 3), 0, ((4, 6),))
    assert shard.local_shape == (2, 3)


def test_chunks_of_a_fused_parameter_are_cut_one_by_one() -> None:
    # 4 query heads and 2 key and value heads of size 2, on tensor rank 1 of 2.
    shard = chunked("qkv", (16, 3), 0, _axis(2, 1), [8, 4, 4])
    assert shard.intervals == ((4, 8), (10, 12), (14, 16))
    assert shard.local_shape == (8, 3)


def test_replicated_shard_is_whole() -> None:
    shard = replicated("norm.weight", (5,), tied_to="other")
    assert shard == Shard("norm.weight", (5,), None, (), "other")
    assert shard.local_shape == (5,)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dim", [0, 1])
def test_slices_of_all_ranks_cover_the_tensor_once(size: int, dim: int) -> None:
    full = torch.arange(16 * 16).view(16, 16)
    shards = [chunked("w", (16, 16), dim, _axis(size, rank), [8, 4, 4]) for rank in range(size)]
    covered = sorted(index for shard in shards for a, b in shard.intervals for index in range(a, b))
    assert covered == list(range(16))
    for shard in shards:
        part = slice_full(full, shard)
        assert tuple(part.shape) == shard.local_shape
        wanted = torch.tensor([index for a, b in shard.intervals for index in range(a, b)])
        assert torch.equal(part, full.index_select(dim, wanted))


def test_slices_are_new_tensors() -> None:
    full = torch.zeros(4)
    slice_full(full, replicated("w", (4,))).fill_(1.0)
    slice_full(full, even("w", (4,), 0, _axis(1, 0))).fill_(1.0)
    assert torch.equal(full, torch.zeros(4))


def _round_trip(rank: int, world_size: int, full: Tensor, dim: int) -> Tensor:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    shard = chunked("w", tuple(full.shape), dim, axis, [8, 4, 4])
    return gather_full(slice_full(full, shard), shard, axis)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_full_undoes_slice_full(dtype: torch.dtype) -> None:
    full = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    for dim in (0, 1):
        for whole in run_distributed(_round_trip, 4, full, dim):
            assert torch.equal(whole, full)


def test_deepspeed_flags_mark_parameters_that_are_really_cut() -> None:
    flags = ("model_parallel", "tensor_model_parallel")
    cases = {
        "cut": (even("w", (4,), 0, _axis(2, 0)), _axis(2, 0), True),
        "whole on a lone rank": (even("w", (2,), 0, _axis(1, 0)), _axis(1, 0), False),
        "replicated": (replicated("w", (2,)), _axis(2, 0), False),
    }
    for name, (shard, axis, marked) in cases.items():
        parameter = nn.Parameter(torch.zeros(2))
        attach(parameter, shard, axis)
        assert shard_of(parameter) is shard
        assert [getattr(parameter, flag, False) for flag in flags] == [marked, marked], name


def test_a_shape_that_does_not_fit_is_our_bug() -> None:
    with pytest.raises(AssertionError, match=r"w: local shape \(3,\) is not \(2,\)"):
        attach(nn.Parameter(torch.zeros(3)), even("w", (4,), 0, _axis(2, 0)), _axis(2, 0))


def test_an_uneven_part_is_refused() -> None:
    with pytest.raises(RootsError) as error:
        chunked("layers.0.attention.qkv.weight", (18, 4), 0, _axis(4, 0), [12, 3, 3])
    assert str(error.value) == (
        "layers.0.attention.qkv.weight=(18, 4): dimension 0 has parts of 3, 3 to cut over 4 tensor "
        "ranks; make them divisible by 4 or change parallel.tensor"
    )


def test_a_parameter_without_record_is_named() -> None:
    with pytest.raises(RootsError) as error:
        shard_of(nn.Parameter(torch.zeros(2, 3)), "stray.weight")
    assert str(error.value) == (
        "stray.weight=(2, 3): every parameter carries a Shard record; "
        "create it through roots.parallel, or call roots.parallel.shard.attach on it"
    )
