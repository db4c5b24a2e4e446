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


def cut_blocks(
    partition: str | Sequence[int], weights: Sequence[int], num_source: int, num_stages: int
) -> list[int]:
    """Where `parallel.pipeline_partition` cuts the blocks of a model, of which the first
    `num_source` are those of an encoder that a decoder reads.

    partition: "parameters" balances `weights`, "uniform" the number of blocks; or the number of
               blocks of every stage
    weights:   parameters of every block, with those of the layers that stay beside it
    Returns num_stages + 1 boundaries.
    """
    if not isinstance(partition, str):
        return [0, *accumulate(partition)]
    if partition == "uniform":
        weights = [1] * len(weights)
    if num_source and num_stages > 1:
        return pair_boundaries(weights[:num_source], weights[num_source:], num_stages)
    return stage_boundaries(weights, num_stages)


def nearest_for_pair(blocks: Sequence[int], num_source: int) -> list[int]:
    """The partition nearest to `blocks` in which every stage holds blocks of one stack alone.

    One cut goes to the end of the encoder's `num_source` blocks, others only out of its way: of all
    such partitions the one whose cuts move by the fewest blocks together. Needs at least two
    stages, each with a block, and blocks of both stacks.
    """
    cuts = [0, *accumulate(blocks)]
    num_stages, items = len(blocks), cuts[-1]
    found: list[tuple[int, list[int]]] = []
    for first in range(1, num_stages):
        if first > num_source or num_stages - first > items - num_source:
            continue
        border = [num_source + stage - first for stage in range(num_stages + 1)]
        moved = [
            *map(min, cuts[:first], border[:first]),
            num_source,
            *map(max, cuts[first + 1 :], border[first + 1 :]),
        ]
        found.append((sum(abs(a - b) for a, b in zip(moved, cuts, strict=True)), moved))
    return [stop - start for start, stop in pairwise(min(found)[1])]


def _heaviest(weights: Sequence[int], boundaries: Sequence[int]) -> int:
    return max(sum(weights[start:stop]) for start, stop in pairwise(boundaries))
