"""Parallel linear layers: every degree equals one process, forward, input and weight gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.errors import RootsError
from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.shard import gather_full, shard_of, slice_full
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

IN, OUT = 12, 24
CHUNKS = [8, 12, 4]


def _values(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"x": (2, 4, IN), "weight": (OUT, IN), "bias": (OUT,), "dy": (2, 4, OUT)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def _plain(values: dict[str, Tensor], with_bias: bool = True) -> dict[str, Tensor]:
    """One process, torch's own linear: y and the gradients of everything."""
    leaves = {name: values[name].clone().requires_grad_() for name in ("x", "weight", "bias")}
    y = functional.linear(leaves["x"], leaves["weight"], leaves["bias"] if with_bias else None)
    y.backward(values["dy"])
    found = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"y": y.detach(), **found}


def _fill(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.data.copy_(slice_full(values[name], shard_of(parameter)))


def _whole_gradients(module: nn.Module, axis: Axis) -> dict[str, Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        found[f"d{name}"] = gather_full(parameter.grad, shard_of(parameter), axis)
    return found


def _local(full: Tensor, axis: Axis, chunks: list[int]) -> Tensor:
    """This rank's share of the last dimension, chunk by chunk."""
    parts = full.split(chunks, dim=-1)
    return torch.cat([part.chunk(axis.size, dim=-1)[axis.rank] for part in parts], dim=-1)


def _column(
    axis: Axis, dtype: torch.dtype, chunks: list[int] | None, gather_output: bool, skip_bias: bool
) -> dict[str, Tensor]:
    values = _values(dtype)
    layer = ColumnParallelLinear(
        IN,
        OUT,
        name="layer",
        axis=axis,
        bias=True,
        chunks=chunks,
        gather_output=gather_output,
        skip_bias=skip_bias,
        dtype=dtype,
    )
    _fill(layer, values)
    x = values["x"].clone().requires_grad_()
    result = layer(x)
    y = result[0] + result[1] if skip_bias else result
    parts = [OUT] if chunks is None else chunks
    y.backward(values["dy"] if gather_output else _local(values["dy"], axis, parts))
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad, **_whole_gradients(layer, axis)}


def _row(axis: Axis, dtype: torch.dtype, skip_bias: bool) -> dict[str, Tensor]:
    values = _values(dtype)
    layer = RowParallelLinear(
        IN, OUT, name="layer", axis=axis, bias=True, skip_bias=skip_bias, dtype=dtype
    )
    _fill(layer, values)
    x = _local(values["x"], axis, [IN]).contiguous().requires_grad_()
    result = layer(x)
    y = result[0] + result[1] if skip_bias else result
    y.backward(values["dy"])
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad, **_whole_gradients(layer, axis)}


def _column_on_rank(rank: int, world_size: int, *arguments: object) -> dict[str, Tensor]:
    return _column(Mesh.create(Topology(tensor=world_size)).tensor, *arguments)  # type: ignore[arg-type]


def _row_on_rank(rank: int, world_size: int, *arguments: object) -> dict[str, Tensor]:
    return _row(Mesh.create(Topology(tensor=world_size)).tensor, *arguments)  # type: ignore[arg-type]


def _sequence_parallel(rank: int, world_size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Both layers on slices of dim 1, each against the same whole values."""
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    values = _values(dtype)
    shared = {"axis": axis, "bias": True, "sequence_dim": 1, "dtype": dtype}
    column = ColumnParallelLinear(IN, OUT, name="column", **shared)
    row = RowParallelLinear(IN, OUT, name="row", **shared)
    x_slice, dy_slice = (values[name].chunk(axis.size, 1)[axis.rank] for name in ("x", "dy"))
    found = {}
    for name, layer, x, dy in (
        ("column", column, x_slice, _local(values["dy"], axis, [OUT])),
        ("row", row, _local(values["x"], axis, [IN]), dy_slice),
    ):
        _fill(layer, values)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        assert leaf.grad is not None
        found |= {f"{name} y": y.detach(), f"{name} dx": leaf.grad}
        found |= {f"{name} {k}": v for k, v in _whole_gradients(layer, axis).items()}
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_layers_on_slices_of_the_sequence_match_unsharded(size: int) -> None:
    expected = _plain(_values(torch.float64))
    found = run_distributed(_sequence_parallel, size, torch.float64)
    for name, dim in (("column dx", 1), ("row y", 1), ("column y", -1), ("row dx", -1)):
        whole = torch.cat([each[name] for each in found], dim)
        torch.testing.assert_close(whole, expected[name.split()[1]], msg=name)
    for each in found:
        for name in ("column dweight", "column dbias", "row dweight", "row dbias"):
            torch.testing.assert_close(each[name], expected[name.split()[1]], msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize("skip_bias", [False, True])
@pytest.mark.parametrize("chunks", [None, CHUNKS], ids=["plain", "fused"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_linear_matches_unsharded(
    size: int, chunks: list[int] | None, skip_bias: bool
) -> None:
    wanted = _plain(_values(torch.float64))
    ranks = run_distributed(_column_on_rank, size, torch.float64, chunks, False, skip_bias)
    for rank, found in enumerate(ranks):
        axis = Axis("tensor", size, rank, tuple(range(size)))
        local_y = _local(wanted["y"], axis, chunks or [OUT])
        for name, value in {**wanted, "y": local_y}.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_column_linear_gathers_its_output_when_asked(size: int) -> None:
    wanted = _plain(_values(torch.float64))
    for found in run_distributed(_column_on_rank, size, torch.float64, None, True, False):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.distributed
@pytest.mark.parametrize("skip_bias", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_row_linear_matches_unsharded(size: int, skip_bias: bool) -> None:
    wanted = _plain(_values(torch.float64))
    for rank, found in enumerate(run_distributed(_row_on_rank, size, torch.float64, skip_bias)):
        axis = Axis("tensor", size, rank, tuple(range(size)))
        local_dx = _local(wanted["dx"], axis, [IN])
        for name, value in {**wanted, "dx": local_dx}.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_layers_err_at_most_twice_as_much_as_plain_torch(dtype: torch.dtype) -> None:
    # Gold starts from the rounded values, so that only the arithmetic is judged.
    rounded = {name: value.double() for name, value in _values(dtype).items()}
    gold, plain = _plain(rounded), _plain(_values(dtype))
    column = run_distributed(_column_on_rank, 2, dtype, None, True, False)[1]
    row = run_distributed(_row_on_rank, 2, dtype, False)
    row[0]["dx"] = torch.cat([row[0]["dx"], row[1]["dx"]], dim=-1)
    for found in (column, row[0]):
        for name, value in gold.items():
            assert found[name].dtype == dtype
            error = (found[name].double() - value).norm()
            assert error <= 2 * (plain[name].double() - value).norm() + 1e-6 * value.norm(), name


def test_without_bias_there_is_none_to_skip() -> None:
    axis = Mesh.single().tensor
    for kind in (ColumnParallelLinear, RowParallelLinear):
        layer = kind(IN, OUT, name="layer", axis=axis, bias=False, skip_bias=True)
        _fill(layer, _values(torch.float32))
        y, bias = layer(torch.ones(1, IN))
        assert bias is None
        torch.testing.assert_close(y, layer.weight.sum(1)[None])


def test_parameters_can_be_built_on_meta_with_their_records() -> None:
    axis = Mesh.single().tensor
    layer = ColumnParallelLinear(IN, OUT, name="layer", axis=axis, bias=True, device="meta")
    assert layer.weight.is_meta
    assert shard_of(layer.weight).name == "layer.weight"
    assert layer.bias is not None
    assert shard_of(layer.bias).shape == (OUT,)


def _frozen_weight(rank: int, world_size: int) -> list[bool]:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    layer = ColumnParallelLinear(IN, OUT, name="layer", axis=axis, bias=True)
    _fill(layer, _values(torch.float32))
    layer.weight.requires_grad_(False)
    x = torch.ones(1, IN, requires_grad=True)
    layer(x).sum().backward()
    assert layer.bias is not None
    return [layer.weight.grad is None, layer.bias.grad is not None, x.grad is not None]


@pytest.mark.distributed
def test_a_frozen_weight_gets_no_gradient() -> None:
    assert run_distributed(_frozen_weight, 2) == [[True, True, True]] * 2


def test_sizes_that_cannot_be_cut_are_refused() -> None:
    axis = Axis("tensor", 5, 0, tuple(range(5)))
    with pytest.raises(RootsError) as error:
        ColumnParallelLinear(IN, OUT, name="layers.3.mlp.up", axis=axis, bias=False)
    assert str(error.value) == (
        "layers.3.mlp.up.weight=(24, 12): dimension 0 has parts of 24 to cut over 5 tensor ranks; "
        "make them divisible by 5 or change parallel.tensor"
    )
    with pytest.raises(RootsError) as error:
        RowParallelLinear(IN, OUT, name="layers.3.mlp.down", axis=axis, bias=False)
    assert str(error.value) == (
        "layers.3.mlp.down.weight=(24, 12): dimension 1 has parts of 12 to cut over 5 tensor "
        "ranks; make them divisible by 5 or change parallel.tensor"
    )
