"""What a checkpoint holds of an engine, and how it comes back, on this layout or another.

Tensors by key: a weight has its global name; of the optimizer `master/NAME` (16-bit runs alone: the
weights of an fp32 run are their own), `exp_avg/NAME`, `exp_avg_sq/NAME`, in fp32. Each rank writes
what it keeps and no other does, cut into boxes of the global tensors (roots/checkpoint/boxes.py),
and reads what it is going to keep. The numbers that are the same on all ranks are an EngineState.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn

from roots.checkpoint.boxes import Piece
from roots.checkpoint.store import TensorStore
from roots.parallel.mesh import Mesh
from roots.parallel.shard import Shard, shard_of
from roots.training.engine.optimizer_state import (
    Slice,
    inner_optimizer,
    link_state,
    make_state,
    set_steps_made,
    slice_groups,
    steps_made,
)

MASTER = "master"


@dataclass(frozen=True)
class LossScale:
    """Where the loss scale stands. `overflows`: those since it last doubled that were tolerated."""

    scale: float
    iteration: int
    last_overflow: int
    overflows: int


@dataclass(frozen=True)
class EngineState:
    """What all ranks have alike. `updates`: how many Adam counts; skipped steps are none."""

    updates: int
    loss_scale: LossScale | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the way back."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> EngineState:
        """Raises TypeError or KeyError for what `to_json` has not made."""
        scale = tree["loss_scale"]
        return EngineState(int(tree["updates"]), None if scale is None else LossScale(**scale))


def engine_state(optimizer: Any) -> EngineState:
    """The numbers of DeepSpeed's `optimizer`."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if not isinstance(scaler, DynamicLossScaler):
        return EngineState(steps_made(optimizer))
    scale = LossScale(
        scaler.cur_scale,
        scaler.cur_iter,
        scaler.last_overflow_iter,
        scaler.delayed_shift - scaler.cur_hysteresis,
    )
    return EngineState(steps_made(optimizer), scale)


def written_groups(optimizer: Any, module: nn.Module, mesh: Mesh) -> Iterator[list[Piece]]:
    """What this rank writes, in groups: the pieces of one are good until the next is asked for.

    Nothing of what tensor ranks hold alike but the first's, and of copies that all replicas have a
    share each; a copy tied to another parameter is not written at all.
    """
    inner = inner_optimizer(optimizer)
    for group in slice_groups(optimizer, module):
        pieces = []
        for part in group:
            shard = part.shard
            if shard.tied_to is not None or (shard.dim is None and mesh.tensor.rank != 0):
                continue
            start, stop = _share(part, mesh)
            for key, value in _weights_and_state(part, inner).items():
                pieces.append(Piece(key, shard, part.start + start, value[start:stop]))
        yield pieces


def kept_groups(optimizer: Any, module: nn.Module) -> Iterator[list[Piece]]:
    """All that this rank needs to go on by itself on the same layout, whoever else has it too.

    In groups, as `written_groups`.
    """
    inner = inner_optimizer(optimizer)
    whole = not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)
    pieces = []
    if whole:
        named = ((shard_of(each, name), each) for name, each in module.named_parameters())
        pieces = [Piece(shard.name, shard, 0, each.detach().view(-1)) for shard, each in named]
    for group in slice_groups(optimizer, module):
        for part in group:
            # The weight is there whole, or comes back from the fp32 one.
            known = whole or part.weight.dtype != part.master.dtype
            for key, value in _weights_and_state(part, inner).items():
                if not (known and key == part.shard.name):
                    pieces.append(Piece(key, part.shard, part.start, value))
        yield pieces
        pieces = []


def _weights_and_state(part: Slice, inner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of `part` by key: the fp32 weight stands for the weight itself where that is
    fp32 too."""
    name = part.shard.name
    tensors = {name: part.master}
    if part.weight.dtype != part.master.dtype:
        tensors = {name: part.weight, f"{MASTER}/{name}": part.master}
    return {**tensors, **{f"{kind}/{name}": value for kind, value in part.state(inner).items()}}


def _share(part: Slice, mesh: Mesh) -> tuple[int, int]:
    """What this replica writes of `part`: whole rows, where all replicas have the same."""
    if not part.copies:
        return 0, part.length
    shape = part.shard.local_shape
    rows = shape[0] if shape else 1
    row = part.length // rows
    rank, size = mesh.replica.rank, mesh.replica.size
    return rows * rank // size * row, rows * (rank + 1) // size * row


@torch.no_grad()
def read_back(optimizer: Any, module: nn.Module, store: TensorStore, state: EngineState) -> None:
    """Give the engine what `store` holds, whatever layout and precision wrote it.

    Communicates nothing; `settle` has to follow on all ranks. The settings of the optimizer (rates,
    decay, clipping) stay as built. Raises RootsError for a tensor that is missing or of another
    shape.
    """
    names = _state_names(store) if state.updates else []
    zero_3 = isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)
    if zero_3:
        optimizer.checkpoint_event_prologue()
        pieces = []
    else:
        named = module.named_parameters()
        pieces = [_weight(shard_of(each, name), each, store) for name, each in named]
    for group in slice_groups(optimizer, module, changing=True):
        for part in group:
            pieces += _of_optimizer(optimizer, part, names, store)
        store.fill(pieces)
        pieces = []
        if zero_3:
            for part in group:
                part.weight.copy_(part.master)
    if names or steps_made(optimizer):
        set_steps_made(optimizer, state.updates)
    if names:
        link_state(optimizer)
    _set_scale(optimizer, state.loss_scale)


def _of_optimizer(
    optimizer: Any, part: Slice, names: list[str], store: TensorStore
) -> Iterator[Piece]:
    """What is to be read of `part`: the fp32 weights, and the state's tensors called `names`."""
    make_state(optimizer, part, names)
    moments = part.state(inner_optimizer(optimizer))
    if not names:
        # Before the first update Adam's moments are zero, also in an engine that has trained.
        for moment in moments.values():
            moment.zero_()
    yield Piece(_master_key(part.shard, store), part.shard, part.start, part.master)
    for name in names:
        yield Piece(f"{name}/{part.shard.name}", part.shard, part.start, moments[name])


def settle(optimizer: Any) -> None:
    """Gather anew what ZeRO-3 keeps whole on every rank; nothing at other stages."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_epilogue()


def _weight(shard: Shard, parameter: nn.Parameter, store: TensorStore) -> Piece:
    """The parameter as a piece; after a change of precision it is rounded from the fp32 weight."""
    key = _stored_name(shard, store)
    same = key not in store.tensors or store.dtype(key) == parameter.dtype
    source = shard.name if same else _master_key(shard, store)
    return Piece(source, shard, 0, parameter.detach().view(-1))


def _master_key(shard: Shard, store: TensorStore) -> str:
    """Where the fp32 weight is stored: with the 16-bit one or, of an fp32 run, as the weight."""
    held = f"{MASTER}/{_stored_name(shard, store)}" in store.tensors
    return f"{MASTER}/{shard.name}" if held else shard.name


def _stored_name(shard: Shard, store: TensorStore) -> str:
    """The name of `shard` in `store`, which may hold what it is tied to instead."""
    if shard.name not in store.tensors and shard.tied_to is not None:
        return shard.tied_to
    return shard.name


def _state_names(store: TensorStore) -> list[str]:
    """The tensors of an inner optimizer's state that are stored."""
    kinds = {name.split("/", 1)[0] for name in store.tensors if "/" in name}
    return sorted(kinds - {MASTER})


def _set_scale(optimizer: Any, stored: LossScale | None) -> None:
    """Let the loss scale go on from where it stood; a run of another precision has none."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if not isinstance(scaler, DynamicLossScaler) or stored is None:
        return
    scaler.cur_scale = stored.scale
    scaler.cur_iter = stored.iteration
    scaler.last_overflow_iter = stored.last_overflow
    scaler.cur_hysteresis = max(1, scaler.delayed_shift - stored.overflows)
