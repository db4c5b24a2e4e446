"""Where a pipeline is cut: contiguous stages with the smallest largest weight. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def stage_boundaries(weights: Sequence[int], num_stages: int) -> list[int]:
    """Cut `weights` into `num_stages` contiguous parts of at least one item each.

    Returns num_stages + 1 boundaries; stage s holds items [b[s], b[s + 1]). Minimises the heaviest
    part by dynamic programming, O(items^2 x stages); of equal solutions the one with the earliest
    cuts from the end. Needs at least as many items as stages.
    """
    items = len(weights)
    assert 1 <= num_stages <= items, f"{items} items cannot fill {num_stages} stages"
    sums = [0, *accumulate(weights)]
    # best[i]: heaviest part when items [0, i) fill the stages so far; cuts remember the last one.
    best: list[float] = [float(total) for total in sums]
    cuts: list[list[int]] = []
    for stage in range(2, num_stages + 1):
        following = [float("inf")] * (items + 1)
        last_cut = [0] * (items + 1)
        for end in range(stage, items + 1):
            for cut in range(stage - 1, end):
                heaviest = max(best[cut], sums[end] - sums[cut])
                if heaviest < following[end]:
                    following[end], last_cut[end] = heaviest, cut
        best = following
        cuts.append(last_cut)
    boundaries = [items]
    for last_cut in reversed(cuts):
        boundaries.append(last_cut[boundaries[-1]])
    return [0, *reversed(boundaries)]


def pair_boundaries(
    source_weights: Sequence[int], target_weights: Sequence[int], num_stages: int
) -> list[int]:
    """Cut an encoder and the decoder that reads it, one after the other in the items, into stages
    that hold blocks of one of the two: first those of the encoder, then those of the decoder.

    Of the ways to share the stages out, the one with the lightest heaviest stage. DeepSpeed runs
    one backward pass for every tensor that a stage sends; on a stage of both kinds the encoder's
    blocks would run backward twice, for the memory and for x, which depends on it.
    """
    found: list[tuple[int, list[int]]] = []
    for first in range(1, num_stages):
        last = num_stages - first
        if first > len(source_weights) or last > len(target_weights):
            continue
        source = stage_boundaries(source_weights, first)
        target = stage_boundaries(target_weights, last)
        heaviest = max(_heaviest(source_weights, source), _heaviest(target_weights, target))
        found.append((heaviest, source + [len(source_weights) + cut for cut in target[1:]]))
    assert found, f"{len(source_weights)} + {len(target_weights)} blocks, {num_stages} stages"
    return min(found)[1]


def _heaviest(weights: Sequence[int], boundaries: Sequence[int]) -> int:
    return max(sum(weights[start:stop]) for start, stop in pairwise(boundaries))
