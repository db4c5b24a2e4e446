"""Curves of a layout against that of one process: what differs by how much, and what did first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from roots.parallel.shard import Shard, slice_full
from roots.training.router_statistics import ExpertLoad
from roots.verify.floors import Arithmetic, Floor, Floors, floors_of


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
    """What one rank saw: lists with an entry per step. `steps` is empty unless asked for.

    rates:      learning rates that the schedule asked for
    groups:     learning rate and weight decay that every group of parameters had
    evaluation: mean loss on held-out data after the last step; 0 without any
    arithmetic: what rounding does to such a run; None: nothing is known of it
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    overflows: list[str] = field(default_factory=list)
    loads: list[ExpertLoad | None] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    groups: list[tuple[tuple[float, float], ...]] = field(default_factory=list)
    steps: list[list[Piece]] = field(default_factory=list)
    evaluation: float = 0.0
    arithmetic: Arithmetic | None = None


@dataclass(frozen=True)
class Difference:
    """One quantity at one step: the rank that is furthest off, and by which relative difference.

    kind:     "gradient" or "weight" of a tensor, or a key of the numbers that are compared
    name:     the tensor, or ""
    step:     counted from 1
    relative: ||a - b|| / (||b|| + floor / tolerance), which is at most the tolerance where
              ||a - b|| <= tolerance ||b|| + floor; inf for what is missing or not finite
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


def compare(
    reference: Curve, ranks: Sequence[Curve], tolerance: float, floors: Floors | None = None
) -> Comparison:
    """Compare every rank's curve with that of one process, which holds every tensor whole.

    `floors` are what a tensor may differ by besides the tolerance; unless given, what rounding
    does to the arithmetic of the reference (floors.py).
    """
    floors = rounding_of(reference) if floors is None else floors
    found = [*_numbers(reference, ranks, tolerance), *_tensors(reference, ranks, tolerance, floors)]
    largest: dict[tuple[str, str], Difference] = {}
    for each in found:
        key = (each.kind, each.name)
        if key not in largest or each.relative > largest[key].relative:
            largest[key] = each
    order = {piece.shard.name: place for place, piece in enumerate(reference.steps[0])}
    beyond = [each for each in found if not each.relative <= tolerance]
    first = min(beyond, key=lambda each: _precedence(each, order), default=None)
    return Comparison(tolerance, tuple(largest.values()), first)


def rounding_of(curve: Curve) -> Floors:
    """The floors of a run on one process; none where nothing is known of its arithmetic."""
    if curve.arithmetic is None:
        return [{} for _ in curve.steps]
    gradients = [{piece.shard.name: piece.gradient for piece in step} for step in curve.steps]
    return floors_of(curve.arithmetic, gradients, curve.norms, curve.rates)


# Within a step; the other numbers come after what they may be a consequence of, and before weights.
_KINDS = ("coverage", "gradient", "gradient norm", "loss", "", "weight", "evaluation")


def _precedence(difference: Difference, order: dict[str, int]) -> tuple[int, int, int]:
    """Smaller is earlier; within a step a loss may differ because of what the step before did."""
    place = order.get(difference.name, 0)
    nearest_to_loss = -place if difference.kind == "gradient" else place
    kind = difference.kind if difference.kind in _KINDS else ""
    return difference.step, _KINDS.index(kind), nearest_to_loss


def _numbers(reference: Curve, ranks: Sequence[Curve], tolerance: float) -> Iterator[Difference]:
    for step in range(len(reference.losses)):
        found = [_numbers_of(curve, step) for curve in ranks]
        for kind, expected in _numbers_of(reference, step).items():
            relative = {
                rank: _relative_number(numbers.get(kind), expected)
                for rank, numbers in enumerate(found)
            }
            yield _worst(kind, "", step, relative, tolerance)


def _numbers_of(curve: Curve, step: int) -> dict[str, float | None]:
    """The numbers of a step by kind, of which some curves have few."""
    numbers: dict[str, float | None] = {
        "loss": curve.losses[step],
        "gradient norm": curve.norms[step],
    }
    if curve.scales:
        numbers |= {"loss scale": curve.scales[step], "skipped step": float(curve.skipped[step])}
    if curve.groups:
        rates, decays = zip(*curve.groups[step], strict=True)
        # One group may have been forgotten: the rate that is furthest from what was asked for.
        numbers["learning rate"] = max(rates, key=lambda rate: abs(rate - curve.rates[step]))
        numbers["weight decay"] = max(decays)
    load = curve.loads[step] if curve.loads else None
    if load is not None:
        numbers |= {f"{name} of experts": value for name, value in asdict(load).items()}
    if curve.evaluation and step == len(curve.losses) - 1:
        numbers["evaluation"] = curve.evaluation
    return numbers


def _tensors(
    reference: Curve, ranks: Sequence[Curve], tolerance: float, floors: Floors
) -> Iterator[Difference]:
    nothing = Floor(0.0, 0.0)
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
                expected, floor = known[name], floors[step].get(name, nothing)
                gradients[name][rank] = _relative(
                    piece, piece.gradient, expected.gradient, floor.gradient / tolerance
                )
                weights[name][rank] = _relative(
                    piece, piece.weight, expected.weight, floor.weight / tolerance
                )
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


def _relative(piece: Piece, found: Tensor, whole: Tensor, least: float) -> float:
    """||a - b|| / (||b|| + least) over this rank's part; where that is zero, 0 or inf."""
    expected = slice_full(whole, piece.shard).double()
    return _ratio(
        float(torch.linalg.vector_norm(found.double() - expected)),
        float(torch.linalg.vector_norm(expected)) + least,
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
