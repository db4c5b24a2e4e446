"""How far rounding alone puts two runs apart: floors below which a difference says nothing.

Gradients. That of a parameter is a sum with a term for every token of the step. Each term has come
through a chain of roundings, forward to the loss and back, whose errors are independent: with unit
roundoff u and c roundings it is off by u sqrt(c) of itself, and the sum by u sqrt(c) times the root
of the sum of the terms' squares T, however small the sum is. Where the terms cancel (a bias of
normalised keys, which adds the same to every score that the softmax sees) the sum is nothing but
that error, and no tolerance relative to it can hold. T is not in the sum, but in a neighbour: the
matrices of a block meet the same tokens and their terms do not cancel, so T is at most the largest
of their gradients' norms, or of the tensor's own. A gradient is read from Adam's first moment m as
a difference of two moments over 1 - beta1, each rounded. Together, with s = 4 deviations for
safety,

    F_g = s u sqrt(c) max ||g||  +  2 u ||m|| / (1 - beta1) / clip

Weights. Adam moves an element by lr m / (sqrt(v) + epsilon), m and v corrected for their start. If
its clipped gradients are off by d, this moves by at most lr d a, where

    a = (1 + |m| / (sqrt(v) + epsilon)) / (sqrt(v) + epsilon)

which is large where gradients are as small as epsilon. Errors of different elements are alike and
independent, so that a tensor is off by lr F_g rms(a) in a step, and errors of steps add up:

    F_w(t) = sum over steps until t of  lr clip F_g rms(a)

Everything is taken from the run on one process.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from roots.config.run import RunConfig

# Standard deviations that a difference may have.
SAFETY = 4.0
# Roundings that a value meets in a block, as many forward as backward: norm, product, bias,
# activation or softmax, product, bias, sum with the residual, of each of two branches.
ROUNDINGS_A_BLOCK = 28
# What DeepSpeed and roots.training.engine.gradients add to the norm before they compare it.
CLIP_EPSILON = 1e-6
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
# Moments are kept in fp32 whatever a run computes in.
_ROUNDOFF_OF_MOMENTS = UNIT_ROUNDOFF["fp32"]
_BLOCK = re.compile(r"(.*?layers\.\d+)\.")


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes: what its roundings and its optimizer make of an error."""

    roundoff: float
    roundings: int
    beta1: float
    beta2: float
    epsilon: float
    clipping: float

    @classmethod
    def of(cls, config: RunConfig) -> Arithmetic:
        """That of a run; the chain leads through all blocks and, once more as many, both ends."""
        optimizer, model = config.optimizer, config.model
        return cls(
            roundoff=UNIT_ROUNDOFF[config.training.precision],
            roundings=ROUNDINGS_A_BLOCK * (model.num_layers + model.encoder_layers + 1),
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            epsilon=optimizer.epsilon,
            clipping=config.training.gradient_clipping,
        )

    @property
    def relative(self) -> float:
        """What a sum is off by, relative to the size of its terms: s u sqrt(c)."""
        return SAFETY * self.roundoff * math.sqrt(self.roundings)

    def clip(self, norm: float | None) -> float:
        """The factor by which gradients of that norm were clipped."""
        if norm is None or self.clipping == 0:
            return 1.0
        return min(1.0, self.clipping / (norm + CLIP_EPSILON))


class Floor(NamedTuple):
    """Norms of the differences that rounding makes in one tensor at one step."""

    gradient: float
    weight: float


Floors = Sequence[Mapping[str, Floor]]


def floors_of(
    arithmetic: Arithmetic,
    gradients: Sequence[Mapping[str, Tensor]],
    norms: Sequence[float | None],
    rates: Sequence[float],
) -> Floors:
    """The floors of every tensor at every step of a run on one process.

    gradients: of the whole batch before clipping, by name, an entry a step as far as they go
    norms:     of the whole model's gradient, None where the step was skipped
    rates:     learning rates
    """
    moments: dict[str, _Moments] = {}
    found: list[dict[str, Floor]] = []
    for step, norm, rate in zip(gradients, norms, rates, strict=False):
        terms = _terms(step)
        now = {}
        for name, gradient in step.items():
            adam = moments.setdefault(name, _Moments(arithmetic, gradient))
            clip = arithmetic.clip(norm)
            scale = max(terms[_block_of(name)], float(gradient.double().norm()))
            now[name] = adam.skip() if norm is None else adam.step(gradient, clip, rate, scale)
        found.append(now)
    return found


def _terms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest gradient norm of a matrix in every block; what is in none is one together."""
    largest: dict[str, float] = defaultdict(float)
    for name, gradient in gradients.items():
        if gradient.ndim > 1:
            block = _block_of(name)
            largest[block] = max(largest[block], float(gradient.double().norm()))
    return largest


def _block_of(name: str) -> str:
    found = _BLOCK.match(name)
    return found.group(1) if found else ""


class _Moments:
    """Adam's moments of one tensor, and the sum of what its weights may be off by."""

    def __init__(self, arithmetic: Arithmetic, like: Tensor) -> None:
        self.of = arithmetic
        self.first = torch.zeros_like(like, dtype=torch.float64)
        self.second = torch.zeros_like(self.first)
        self.steps = 0
        self.weight = 0.0

    def skip(self) -> Floor:
        """The floors after a step that changed nothing."""
        return Floor(0.0, self.weight)

    def step(self, gradient: Tensor, clip: float, rate: float, terms: float) -> Floor:
        """The floors after a step with that gradient before clipping; `terms`: the size of its
        terms."""
        of = self.of
        clipped = gradient.double() * clip
        self.steps += 1
        self.first.mul_(of.beta1).add_(clipped, alpha=1 - of.beta1)
        self.second.mul_(of.beta2).add_(clipped.square(), alpha=1 - of.beta2)
        read = 2 * _ROUNDOFF_OF_MOMENTS * float(self.first.norm()) / (1 - of.beta1) / clip
        floor = of.relative * terms + read
        root = (self.second / (1 - of.beta2**self.steps)).sqrt() + of.epsilon
        first = self.first / (1 - of.beta1**self.steps)
        steepness = (1 + first.abs() / root) / root
        self.weight += rate * clip * of.relative * terms * float(steepness.square().mean().sqrt())
        return Floor(floor, self.weight)
