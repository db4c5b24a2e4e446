"""All that training has changed on this rank, copied to host memory, to go back to.

Weights, master weights and moments, the optimizer's counts and the loss scale: what a checkpoint
holds. Nothing random has a state (roots/seeding.py), and the learning rate follows from the step.
The copies take as many bytes as the state itself; they are made once and written over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from roots.ops import check_finite
from roots.parallel.process import all_reduce_max
from roots.training.engine.step import Engine

Numbers = dict[str, Any]


class Snapshot:
    """A copy of the state of `engine`, once `take` has made one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._copies: dict[str, Tensor] = {}
        self._numbers: dict[str, Numbers] = {}

    def take(self) -> bool:
        """Copy the state as it is now; False, and nothing, if it is not finite on every rank.

        Communication: one all-reduce of a number over all ranks.
        """
        tensors = dict(_tensors(self._engine))
        bad = torch.tensor([float(not _finite(tensors.values()))], device=self._engine.device.torch)
        if bool(all_reduce_max(self._engine.mesh.world, bad)):
            return False
        for name, tensor in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
                )
            self._copies[name].copy_(tensor)
        self._numbers = {name: _plain(found) for name, found in _counts(self._engine)}
        return True

    def restore(self) -> None:
        """Put the state back in place: whatever refers to its tensors goes on to do so.

        What the optimizer has made since then is a moment or a count, which begin at 0.
        """
        assert self._copies, "nothing to go back to"
        with torch.no_grad():
            for name, tensor in _tensors(self._engine):
                if name in self._copies:
                    tensor.copy_(self._copies[name])
                else:
                    tensor.zero_()
        for name, found in _counts(self._engine):
            before = self._numbers.get(name, {})
            found.update({key: before.get(key, 0) for key in _plain(found)})


def _tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a step changes, by a name that stays."""
    for name, parameter in engine.module.named_parameters():
        # At ZeRO 3 a rank has its part of each, and small ones besides whole.
        for kind in ("ds_tensor", "ds_secondary_tensor"):
            part = getattr(parameter, kind, None)
            if part is not None:
                yield f"{kind} {name}", part
        if parameter.numel():
            yield f"weight {name}", parameter.detach()
    for index, master in enumerate(_masters(engine)):
        yield f"master {index}", master.detach()
        for key, value in _state(engine, master).items():
            if torch.is_tensor(value):
                yield f"{key} {index}", value


def _counts(engine: Engine) -> Iterator[tuple[str, Numbers]]:
    """Every mapping with numbers that a step changes, by a name that stays."""
    for index, master in enumerate(_masters(engine)):
        yield f"state {index}", _state(engine, master)
    # apex counts steps in the group.
    for index, group in enumerate(engine.deepspeed.basic_optimizer.param_groups):
        yield f"group {index}", group
    scaler = getattr(engine.deepspeed.optimizer, "loss_scaler", None)
    if scaler is not None:
        yield "scaler", vars(scaler)


def _masters(engine: Engine) -> list[Tensor]:
    """What the optimizer updates: flat fp32 partitions, or without ZeRO the weights."""
    flat: list[Tensor] | None = getattr(
        engine.deepspeed.optimizer, "fp32_partitioned_groups_flat", None
    )
    if flat is not None:
        return flat
    groups = engine.deepspeed.basic_optimizer.param_groups
    return [each for group in groups for each in group["params"]]


def _state(engine: Engine, master: Tensor) -> Numbers:
    found: Numbers = engine.deepspeed.basic_optimizer.state.get(master, {})
    return found


def _plain(found: Numbers) -> Numbers:
    """The numbers in a mapping."""
    return {key: value for key, value in found.items() if type(value) in (int, float)}


def _finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all are; one pass over them."""
    floats = [each for each in tensors if each.is_floating_point() and each.numel()]
    devices = {each.device for each in floats}
    return all(
        int(check_finite([each for each in floats if each.device == device])) < 0
        for device in devices
    )
