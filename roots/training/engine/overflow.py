"""Overflow attribution: whose gradient was the first not to be finite, and on which rank.

Every gradient is looked at right after backward has summed it up on its rank: before DeepSpeed
reduces it, where ZeRO gives pieces away and an infinity of one rank becomes everyone's. The look is
one kernel that reads the gradient (roots/ops/check_finite.py); its answer is left on the device,
and fetched and compared between the ranks only after a step that overflowed.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from roots.ops import check_finite
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object
from roots.parallel.shard import shard_of

# Every rank's own gradients are finite; what is not is their sum.
IN_THE_SUM = "no single rank, but of their sum"


class GradientWatch:
    """Watches all gradients of `module`; must be made before DeepSpeed hooks itself in.

    `implementation` is that of check_finite.
    """

    def __init__(self, module: nn.Module, implementation: str) -> None:
        self._implementation = implementation
        self._names: list[str] = []
        self._answers: list[tuple[int, Tensor]] = []
        for index, (name, parameter) in enumerate(module.named_parameters()):
            self._names.append(shard_of(parameter, name).name)
            look = functools.partial(self._look, index)
            parameter.register_post_accumulate_grad_hook(look)

    def start_step(self) -> None:
        """Forget the gradients of the step before."""
        self._answers.clear()

    def found(self) -> bool:
        """Whether a gradient of this rank was not finite in this step. Waits for the device."""
        return self._first_here() is not None

    def culprit(self, mesh: Mesh) -> str:
        """Name the first parameter without a finite gradient in this step, and the first such rank.

        First in the order of the model: of stages (with DualPipeV of the ranks, which hold two),
        then of parameters within the stage; equal on every rank. Every rank must call. Waits for
        the device. Communication: one all-gather of a name a rank.
        """
        index = self._first_here()
        name = "" if index is None else self._names[index]
        place = (mesh.pipeline.rank, index, mesh.rank, name)
        places = [each for each in all_gather_object(mesh.world, place) if each[1] is not None]
        if not places:
            return IN_THE_SUM
        _, _, rank, name = min(places)
        return f"{name} on rank {rank}"

    def _look(self, index: int, parameter: Tensor) -> None:
        if parameter.grad is not None:
            found = check_finite([parameter.grad], implementation=self._implementation)
            self._answers.append((index, found))

    def _first_here(self) -> int | None:
        if not self._answers:
            return None
        found = torch.cat([answer for _, answer in self._answers]).tolist()
        bad = [index for (index, _), first in zip(self._answers, found, strict=True) if first >= 0]
        return min(bad, default=None)
