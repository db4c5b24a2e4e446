"""Curves of a layout against that of one process: what differs by how much, and what did first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from roots.parallel.shard import Shard, slice_full
from roots.training.router_statistics import ExpertLoad


class Piece(NamedTuple):
    """One parameter of a rank after a step: its place, its value, and the gradient of the step.

    The gradient is that of the whole global batch, before clipping, derived from Adam's first
    moment m: g = (m_t - beta1 m_(t-1)) / (1 - beta1), divided by the factor of clipping. So it is
    read alike at every ZeRO stage and in every pipeline, whoever holds the gradient when.
    """

    shard: Shard
    weight: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Curve:
    """What one rank saw: lists with an entry per step. `steps` is empty unless asked for."""

    losses: list[float] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    overflows: list[str] = field(default_factory=list)
    loads: list[ExpertLoad | None] = field(default_factory=list)
    steps: list[list[Piece]] = field(default_factory=list)
    evaluation: float = 0.0


@dataclass(frozen=True)
class Difference:
    """One quantity at one step: the rank that is furthest off, and by which relative difference.

    kind: "loss", "gradient norm", "gradient", "weight" or "coverage"; name: the tensor, or ""
    step: counted from 1; relative: ||a - b|| / ||b||, inf for what is missing or not finite
    """

    kind: str
    name: str
    step: int
    ranks: tuple[int, ...]
    relative: float

    def describe(self) -> str:
        """The difference in words."""
        what = f"{self.kind} of {self.name}" if self.name else f"the {self.kind}"
        ranks = ", ".join(str(rank) for rank in self.ranks)
        where = f"on rank {ranks}" if len(self.ranks) == 1 else f"on ranks {ranks}"
        return f"{what} at step {self.step} {where}, relative {self.relative:.1e}"


@dataclass(frozen=True)
class Comparison:
    """The largest difference of every quantity over all steps, and the first beyond the tolerance.

    `first` is the origin as far as numbers tell it: of the first step that differs, a gradient
    rather than a weight, and of several gradients the one nearest to the loss, because the backward
    pass makes it first and spoils those before it.
    """

    tolerance: float
    largest: tuple[Difference, ...]
    first: Difference | None

    @property
    def equal(self) -> bool:
        """Whether everything is within the tolerance."""
        return self.first is None

    def worst(self, kind: str) -> Difference:
        """The largest difference of one kind."""
        return max((each for each in self.largest if each.kind == kind), key=lambda d: d.relative)


def compare(reference: Curve, ranks: Sequence[Curve], tolerance: float) -> Comparison:
    """Compare every rank's curve with that of one process, which holds every tensor whole."""
    found = [*_scalars(reference, ranks, tolerance), *_tensors(reference, ranks, tolerance)]
    largest: dict[tuple[str, str], Difference] = {}
    for each in found:
        key = (each.kind, each.name)
        if key not in largest or each.relative > largest[key].relative:
            largest[key] = each
    order = {piece.shard.name: place for place, piece in enumerate(reference.steps[0])}
    beyond = [each for each in found if not each.relative <= tolerance]
    first = min(beyond, key=lambda each: _precedence(each, order), default=None)
    return Comparison(tolerance, tuple(largest.values()), first)


_KINDS = ("coverage", "gradient", "gradient norm", "loss", "weight")


def _precedence(difference: Difference, order: dict[str, int]) -> tuple[int, int, int]:
    """Smaller is earlier; within a step a loss may differ because of what the step before did."""
    place = order.get(difference.name, 0)
    nearest_to_loss = -place if difference.kind == "gradient" else place
    return difference.step, _KINDS.index(difference.kind), nearest_to_loss


def _scalars(reference: Curve, ranks: Sequence[Curve], tolerance: float) -> Iterator[Difference]:
    for kind, values, others in (
        ("loss", reference.losses, [curve.losses for curve in ranks]),
        ("gradient norm", reference.norms, [curve.norms for curve in ranks]),
    ):
        for step, expected in enumerate(values):
            found = [_relative_number(other[step], expected) for other in others]
            yield _worst(kind, "", step, dict(enumerate(found)), tolerance)


def _tensors(reference: Curve, ranks: Sequence[Curve], tolerance: float) -> Iterator[Difference]:
    for step, whole in enumerate(reference.steps):
        known = {piece.shard.name: piece for piece in whole}
        gradients: dict[str, dict[int, float]] = {name: {} for name in known}
        weights: dict[str, dict[int, float]] = {name: {} for name in known}
        held: dict[str, set[tuple[int, int]]] = {name: set() for name in known}
        for rank, curve in enumerate(ranks):
            for piece in curve.steps[step]:
                name = piece.shard.tied_to or piece.shard.name
                if name not in known:
                    yield Difference("coverage", name, step + 1, (rank,), float("inf"))
                    continue
                expected = known[name]
                gradients[name][rank] = _relative(piece, piece.gradient, expected.gradient)
                weights[name][rank] = _relative(piece, piece.weight, expected.weight)
                held[name].update(_intervals(piece.shard))
        for name, piece in known.items():
            if not _covers(piece.shard, held[name]):
                yield Difference("coverage", name, step + 1, (), float("inf"))
            if gradients[name]:
                yield _worst("gradient", name, step, gradients[name], tolerance)
                yield _worst("weight", name, step, weights[name], tolerance)


def _worst(
    kind: str, name: str, step: int, found: dict[int, float], tolerance: float
) -> Difference:
    """The largest of the ranks' differences, and whose it is: all that are beyond the tolerance."""
    relative = max(found.values())
    beyond = tuple(rank for rank, value in found.items() if not value <= tolerance)
    worst = tuple(rank for rank, value in found.items() if value == relative)
    return Difference(kind, name, step + 1, beyond or worst[:1], relative)


def _relative(piece: Piece, found: Tensor, whole: Tensor) -> float:
    """||a - b|| / ||b|| over this rank's part; of a part of zeros, 0 or inf."""
    expected = slice_full(whole, piece.shard).double()
    return _ratio(
        float(torch.linalg.vector_norm(found.double() - expected)),
        float(torch.linalg.vector_norm(expected)),
    )


def _relative_number(found: float | None, expected: float | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    return _ratio(abs(found - expected), abs(expected))


def _ratio(difference: float, size: float) -> float:
    if difference != difference:  # not finite somewhere: never within a tolerance
        return float("inf")
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def _intervals(shard: Shard) -> tuple[tuple[int, int], ...]:
    """What the rank holds along the sharded dimension; along the first where it holds all."""
    return shard.intervals if shard.dim is not None else ((0, shard.shape[0]),)


def _covers(whole: Shard, held: set[tuple[int, int]]) -> bool:
    """Whether the parts together are the tensor: one of its dimensions without a gap."""
    ends = sorted(held)
    if not ends or ends[0][0] != 0:
        return False
    reach = 0
    for start, stop in ends:
        if start > reach:
            return False
        reach = max(reach, stop)
    return reach in whole.shape
