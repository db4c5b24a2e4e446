"""What is called equal, and which of several differences is named as the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from roots.parallel.shard import Shard, chunked, even, replicated
from roots.verify.compare import Curve, Piece, compare
from tests.helpers.decoders import fake_axis

TOLERANCE = 1e-5
NAMES = ("embedding.weight", "layers.0.up.weight", "layers.1.up.weight")


def shard_of(name: str, size: int, rank: int) -> Shard:
    """The first is whole everywhere, the second cut evenly, the third in two chunks."""
    axis, shape = fake_axis(size, rank), (8, 2)
    if name == NAMES[0]:
        return replicated(name, shape)
    return even(name, shape, 0, axis) if name == NAMES[1] else chunked(name, shape, 0, axis, [4, 4])


def curve(size: int = 1, rank: int = 0, steps: int = 3) -> Curve:
    """Steps of a model whose every tensor and gradient is known."""
    made = Curve(losses=[3.0, 2.0, 1.0][:steps], norms=[1.0] * steps)
    for step in range(steps):
        pieces = []
        for place, name in enumerate(NAMES):
            whole = torch.arange(16.0).view(8, 2) + 10 * place + step
            shard = shard_of(name, size, rank)
            if shard.dim is None:
                part = whole
            else:
                part = torch.cat([whole[start:stop] for start, stop in shard.intervals])
            pieces.append(Piece(shard, part.clone(), part * 0.5))
        made.steps.append(pieces)
    return made


def layout() -> list[Curve]:
    return [curve(2, rank) for rank in range(2)]


def test_shards_of_a_layout_equal_the_whole() -> None:
    comparison = compare(curve(), layout(), TOLERANCE)
    assert comparison.equal
    assert {(each.kind, each.name) for each in comparison.largest} == {
        ("loss", ""),
        ("gradient norm", ""),
        *((kind, name) for kind in ("gradient", "weight") for name in NAMES),
    }
    assert comparison.worst("weight").relative == 0.0


def test_the_gradient_nearest_to_the_loss_is_named_in_the_first_step_that_differs() -> None:
    ranks = layout()
    for step in (1, 2):
        for place in range(3):
            ranks[1].steps[step][place].weight.mul_(1.5)
    for place in (0, 1):
        ranks[1].steps[1][place].gradient.mul_(1.5)
    ranks[1].losses[1] = 2.5
    first = compare(curve(), ranks, TOLERANCE).first
    assert first is not None
    assert (first.kind, first.name, first.step, first.ranks) == ("gradient", NAMES[1], 2, (1,))
    assert first.describe() == (
        "gradient of layers.0.up.weight at step 2 on rank 1, relative 5.0e-01"
    )


def test_a_loss_alone_is_named_without_a_tensor() -> None:
    ranks = layout()
    ranks[0].losses[2] = 1.0001
    first = compare(curve(), ranks, TOLERANCE).first
    assert first is not None
    assert first.describe() == "the loss at step 3 on rank 0, relative 1.0e-04"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_equal(value: float) -> None:
    ranks = layout()
    ranks[1].steps[0][2].weight[0, 0] = value
    first = compare(curve(), ranks, TOLERANCE).first
    assert first is not None
    assert (first.kind, first.name, first.step) == ("weight", NAMES[2], 1)


def test_a_tensor_that_nobody_holds_whole_is_named() -> None:
    ranks = layout()
    first = compare(curve(), ranks[:1], TOLERANCE).first
    assert first is not None
    assert (first.kind, first.name, first.step) == ("coverage", NAMES[1], 1)
    stranger = replicated("unknown.weight", (2,))
    ranks[0].steps[0].append(Piece(stranger, torch.zeros(2), torch.zeros(2)))
    first = compare(curve(), ranks, TOLERANCE).first
    assert first is not None
    assert (first.kind, first.name, first.ranks) == ("coverage", "unknown.weight", (0,))


def test_a_rank_that_saw_fewer_steps_is_a_bug() -> None:
    short = replace(curve(), steps=curve().steps[:2])
    with pytest.raises(IndexError):
        compare(curve(), [short], TOLERANCE)
