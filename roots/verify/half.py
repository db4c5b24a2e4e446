"""Runs in 16 bits: against one another, and against one process in fp32.

One process in 16 bits is off that in fp32 by the rounding of its arithmetic (floors.py, with the
unit roundoff of 16 bits): by s u sqrt(c) of a gradient's terms. That bound holds mistakes that all
16-bit layouts make alike, such as a loss scale that is not divided out.

A layout is held closer. By how much a tensor is really off in 16 bits is measured: as one process
is off that in fp32, so may a layout be off one process, times the same s for safety, since both are
samples of the same rounding; and by s u of itself, because 16-bit weights are stored so.

A token whose router is undecided between two experts goes to another one by rounding. Logits are
off by u sqrt(c) of themselves, and between E experts there are E gaps as narrow, so that it happens
to a share p = E u sqrt(c) of the tokens. Each moves a term from one expert to another, which makes
sqrt(p) of a gradient. So loads of experts are compared in fp32 alone, where no token is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from roots.verify.compare import Comparison, Curve, Piece, compare
from roots.verify.floors import SAFETY, Arithmetic, Floor, Floors, floors_of


def in_16_bits(
    reference: Curve, exact: Curve, ranks: Sequence[Curve]
) -> tuple[Comparison, tuple[Comparison, ...]]:
    """The ranks against `reference`, one process in 16 bits; and both of these against `exact`,
    one process in fp32."""
    arithmetic = reference.arithmetic
    assert arithmetic is not None, "every curve that is trained has one"
    experts = max((_experts(step) for step in exact.steps), default=0)
    flips = math.sqrt(min(1.0, experts * arithmetic.relative / SAFETY))
    # fp32 has no loss scale.
    plain = replace(exact, scales=[], skipped=[], loads=[])
    rounding = _with_flips(_rounding(arithmetic, exact), exact, flips)
    against_fp32 = tuple(
        compare(plain, curves, arithmetic.relative, rounding) for curves in ([reference], ranks)
    )
    measured = _with_flips(_measured(reference, exact), exact, flips)
    tolerance = SAFETY * arithmetic.roundoff
    return compare(replace(reference, loads=[]), ranks, tolerance, measured), against_fp32


def _experts(step: Sequence[Piece]) -> int:
    """Rows of the first router; 0 without any."""
    names = ((piece.shard.name, piece.shard.shape[0]) for piece in step)
    return next((rows for name, rows in names if name.endswith("router.weight")), 0)


def _rounding(arithmetic: Arithmetic, exact: Curve) -> Floors:
    """What the roundings of `arithmetic` do to the gradients of the run in fp32."""
    gradients = [{piece.shard.name: piece.gradient for piece in step} for step in exact.steps]
    return floors_of(arithmetic, gradients, exact.norms, exact.rates)


def _measured(reference: Curve, exact: Curve) -> Floors:
    """SAFETY times what the run in 16 bits is off that in fp32: gradients at most in any step,
    weights at most up to the step."""
    off = [
        {
            mine.shard.name: Floor(
                SAFETY * _distance(mine.gradient, other.gradient),
                SAFETY * _distance(mine.weight, other.weight),
            )
            for mine, other in zip(*steps, strict=True)
        }
        for steps in zip(reference.steps, exact.steps, strict=True)
    ]
    return [
        {
            name: Floor(
                max(each[name].gradient for each in off),
                max(each[name].weight for each in off[: step + 1]),
            )
            for name in now
        }
        for step, now in enumerate(off)
    ]


def _with_flips(floors: Floors, exact: Curve, flips: float) -> Floors:
    """Floors of gradients with `flips` of the gradient more."""
    sizes = [{p.shard.name: float(p.gradient.double().norm()) for p in s} for s in exact.steps]
    return [
        {
            name: each._replace(gradient=each.gradient + flips * size[name])
            for name, each in now.items()
        }
        for now, size in zip(floors, sizes, strict=True)
    ]


def _distance(mine: Tensor, other: Tensor) -> float:
    return float((mine.double() - other.double()).norm())
