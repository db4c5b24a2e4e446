"""What ranks write of an engine is all of it, once; and it comes back, in another precision too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from roots.checkpoint.staging import entries_of
from roots.checkpoint.store import TensorStore
from roots.checkpoint.tensor_file import write_entries
from roots.errors import RootsError
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.shard import attach, even, replicated
from roots.training.engine.checkpoint_state import (
    EngineState,
    LossScale,
    engine_state,
    kept_groups,
    read_back,
    written_groups,
)
from tests.helpers.decoders import fake_axis

SHAPES = {"embedding": (8, 3), "norm": (5,), "head": (8, 3)}


def mesh_of(*, tensor: tuple[int, int] = (1, 0), replica: tuple[int, int] = (1, 0)) -> Mesh:
    """One rank of several, (size, rank) by axis, without processes."""
    size, rank = replica
    axis = Axis("replica", size, rank, tuple(range(size)))
    return dataclasses.replace(Mesh.single(), tensor=fake_axis(*tensor), replica=axis)


def module_of(mesh: Mesh, dtype: torch.dtype = torch.float32, seed: int = 3) -> nn.Module:
    """A matrix cut over tensor ranks with a copy that is tied to it, and what all hold alike."""
    module, generator = nn.Module(), torch.Generator().manual_seed(seed)
    for name, shape in SHAPES.items():
        tied = {"tied_to": "embedding"} if name == "head" else {}
        shard = replicated(name, shape) if name == "norm" else even(name, shape, 0, mesh.tensor)
        shard = dataclasses.replace(shard, **tied)
        parameter = nn.Parameter(torch.randn(shard.local_shape, generator=generator).to(dtype))
        attach(parameter, shard, mesh.tensor)
        module.register_parameter(name, parameter)
    with torch.no_grad():
        module.head.copy_(module.embedding)
    return module


def train(module: nn.Module, steps: int, adam: torch.optim.AdamW | None = None) -> Any:
    """AdamW after `steps` with gradients that depend on the parameters alone."""
    adam = adam or torch.optim.AdamW(module.parameters(), lr=0.1, foreach=False)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = parameter.detach().sin()
        adam.step()
    return adam


def store_of(folder: Path, *ranks: tuple[Any, nn.Module, Mesh]) -> TensorStore:
    """What these ranks write, a file each."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.safetensors" for number in range(len(ranks))]
    for path, (optimizer, module, mesh) in zip(files, ranks, strict=True):
        (pieces,) = written_groups(optimizer, module, mesh)
        write_entries(path, list(entries_of(pieces)))
    return TensorStore(folder, files)


def tensors_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[Tensor]:
    """Weights and moments."""
    states = [optimizer.state.get(each, {}) for each in module.parameters()]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq") if state]
    return [*(each.detach() for each in module.parameters()), *moments]


def test_engine_comes_back_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    module = module_of(Mesh.single())
    adam = train(module, 3)
    store = store_of(tmp_path, (adam, module, Mesh.single()))
    other = module_of(Mesh.single(), seed=4)
    new = torch.optim.AdamW(other.parameters(), lr=0.1, foreach=False)
    read_back(new, other, store, engine_state(adam))
    assert engine_state(new) == EngineState(3)
    for _ in range(2):
        for mine, theirs in zip(tensors_of(new, other), tensors_of(adam, module), strict=True):
            assert torch.equal(mine, theirs)
        train(module, 1, adam)
        train(other, 1, new)


@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_replicas_without_zero_share_what_all_have(replicas: int, tmp_path: Path) -> None:
    """Each writes some rows of each tensor, and together they write each element once."""
    meshes = [mesh_of(replica=(replicas, rank)) for rank in range(replicas)]
    ranks = []
    for mesh in meshes:
        module = module_of(mesh)
        ranks.append((train(module, 2), module, mesh))
    groups = [list(written_groups(*each)) for each in ranks]
    written = [sum(piece.data.numel() for piece in pieces) for (pieces,) in groups]
    # Of three tensors each: weights and two moments; nothing of the tied copy.
    assert sum(written) == 3 * (8 * 3 + 5)
    assert max(written) <= 3 * (-(-8 // replicas) * 3 + -(-5 // replicas))
    store = store_of(tmp_path, *ranks)
    assert torch.equal(store.read(replicated("norm", (5,))), ranks[0][1].norm)
    assert "head" not in store.tensors


def test_tensor_ranks_write_their_parts_and_the_first_what_all_have(tmp_path: Path) -> None:
    """Another number of tensor ranks reads it, the tied copy from what it is tied to."""
    ranks = []
    for rank in range(2):
        mesh = mesh_of(tensor=(2, rank))
        module = module_of(mesh, seed=10 + rank)
        ranks.append((train(module, 1), module, mesh))
    store = store_of(tmp_path, *ranks)
    whole = module_of(Mesh.single())
    new = torch.optim.AdamW(whole.parameters(), lr=0.1)
    read_back(new, whole, store, EngineState(1))
    parts = [module for _, module, _ in ranks]
    assert torch.equal(whole.embedding, torch.cat([each.embedding for each in parts]))
    assert torch.equal(whole.norm, parts[0].norm)
    assert torch.equal(whole.head, whole.embedding)
    moments = [adam.state[module.embedding]["exp_avg"] for adam, module, _ in ranks]
    assert torch.equal(new.state[whole.embedding]["exp_avg"], torch.cat(moments))
    assert torch.equal(new.state[whole.head]["exp_avg"], torch.cat(moments))


def in_16_bits(module: nn.Module) -> Any:
    """DeepSpeed's ZeRO 1 over one replica, as far as a checkpoint knows it, with a loss scale."""
    flat = nn.Parameter(torch.cat([each.detach().view(-1).float() for each in module.parameters()]))
    place = 0
    for parameter in module.parameters():
        count = parameter.numel()
        parameter._hp_mapping = SimpleNamespace(
            lp_fragment_address=SimpleNamespace(start=0, numel=count),
            hp_fragment_address=SimpleNamespace(start=place, numel=count),
            param_group_index=0,
        )
        place += count
    optimizer = DeepSpeedZeroOptimizer.__new__(DeepSpeedZeroOptimizer)
    optimizer.single_partition_of_fp32_groups = [flat]
    optimizer.optimizer = torch.optim.AdamW([flat], lr=0.1, foreach=False)
    optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0**16,
        scale_window=4,
        min_scale=1,
        delayed_shift=2,
        consecutive_hysteresis=False,
    )
    optimizer._lazy_init_hp_params_optimizer_state = lambda: None
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_changes_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    """fp32 weights become the masters, and 16-bit weights their rounded values."""
    mesh = Mesh.single()
    module = module_of(mesh)
    adam = train(module, 2)
    wide = store_of(tmp_path / "wide", (adam, module, mesh))
    narrow = module_of(mesh, dtype, seed=4)
    optimizer = in_16_bits(narrow)
    read_back(optimizer, narrow, wide, engine_state(adam))
    for name, parameter in narrow.named_parameters():
        assert torch.equal(parameter, getattr(module, name).to(dtype))
    # A step in fp32 that rounding to 16 bits loses.
    optimizer.single_partition_of_fp32_groups[0].data.add_(1e-6)
    store = store_of(tmp_path / "narrow", (optimizer, narrow, mesh))
    assert {"master/norm", "norm", "exp_avg/norm", "exp_avg_sq/norm"} <= set(store.tensors)
    back = module_of(mesh, seed=5)
    new = torch.optim.AdamW(back.parameters(), lr=0.1)
    read_back(new, back, store, engine_state(optimizer))
    for name, parameter in back.named_parameters():
        before = getattr(module, name)
        assert torch.equal(parameter, before + 1e-6)
        moment = adam.state[getattr(module, "embedding" if name == "head" else name)]["exp_avg"]
        assert torch.equal(new.state[parameter]["exp_avg"], moment)


def test_loss_scale_goes_on_with_its_counts(tmp_path: Path) -> None:
    """One overflow that was tolerated is remembered; of another precision there is none to take."""
    module = module_of(Mesh.single(), torch.float16)
    optimizer = in_16_bits(module)
    scaler = optimizer.loss_scaler
    scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = 2.0**13, 40, 38
    scaler.cur_hysteresis = 1
    state = engine_state(optimizer)
    assert state == EngineState(0, LossScale(2.0**13, 40, 38, 1))
    assert EngineState.from_json(state.to_json()) == state
    store = store_of(tmp_path, (optimizer, module, Mesh.single()))
    new = in_16_bits(module)
    read_back(new, module, store, state)
    assert engine_state(new) == state
    read_back(new, module, store, EngineState(0))
    assert engine_state(new) == state


def test_engine_that_has_trained_goes_back_to_before_the_first_update(tmp_path: Path) -> None:
    module = module_of(Mesh.single())
    fresh = torch.optim.AdamW(module.parameters(), lr=0.1, foreach=False)
    store = store_of(tmp_path, (fresh, module, Mesh.single()))
    expected = module_of(Mesh.single())
    train(expected, 2)
    adam = train(module, 3)
    read_back(adam, module, store, EngineState(0))
    assert engine_state(adam) == EngineState(0)
    train(module, 2, adam)
    for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_missing_moment_is_told(tmp_path: Path) -> None:
    module = module_of(Mesh.single())
    adam = train(module, 1)
    store = store_of(tmp_path, (adam, module, Mesh.single()))
    del store.tensors["exp_avg/norm"]
    with pytest.raises(RootsError, match=r"tensor exp_avg/norm: is not in the checkpoint"):
        read_back(adam, module, store, EngineState(1))


def test_pieces_that_a_rank_keeps_for_itself_are_all_it_needs() -> None:
    """Copies of what others write too, so that it can go on from them alone."""
    mesh = mesh_of(tensor=(2, 1), replica=(2, 1))
    module = module_of(mesh)
    adam = train(module, 1)
    (pieces,) = kept_groups(adam, module)
    found = {piece.tensor: piece.data for piece in pieces}
    kinds = ("", "exp_avg/", "exp_avg_sq/")
    assert found.keys() == {f"{kind}{name}" for kind in kinds for name in SHAPES}
    assert torch.equal(found["norm"], module.norm.detach())
