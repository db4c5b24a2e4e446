"""Rules of mixtures of experts and of expert parallelism; see rules.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from roots.config.partition import cut_blocks
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def top_k_of_the_experts(config: RunConfig) -> Iterator[str]:
    """A token goes to different experts, so there are at least as many."""
    moe = config.model.moe
    if 0 < moe.num_experts < moe.top_k:
        yield problem(
            "model.moe.top_k",
            moe.top_k,
            f"must be at most model.moe.num_experts={moe.num_experts}",
            f"set it to {moe.num_experts} or less",
        )


def experts_in_decoders(config: RunConfig) -> Iterator[str]:
    """Capacity and balance are counted along the rows of a decoder."""
    model = config.model
    if model.moe.num_experts and model.architecture != "decoder":
        yield problem(
            "model.moe.num_experts",
            model.moe.num_experts,
            f"needs model.architecture=decoder, but it is {model.architecture}",
            "set model.moe.num_experts=0, or model.architecture=decoder",
        )


def some_layer_has_experts(config: RunConfig) -> Iterator[str]:
    """A model with experts has them in at least one block."""
    model = config.model
    if model.moe.num_experts and model.moe.every > model.num_layers:
        yield problem(
            "model.moe.every",
            model.moe.every,
            f"leaves none of model.num_layers={model.num_layers} blocks with experts",
            f"set it to {model.num_layers} or less, or model.moe.num_experts=0",
        )


def gate_has_shared_experts(config: RunConfig) -> Iterator[str]:
    """A gate of what is not there gates nothing."""
    moe = config.model.moe
    if moe.shared_expert_gate and not moe.num_shared_experts:
        yield problem(
            "model.moe.shared_expert_gate",
            True,
            "has no effect with model.moe.num_shared_experts=0",
            "set model.moe.num_shared_experts, or model.moe.shared_expert_gate=false",
        )


def tensor_divides_experts(config: RunConfig) -> Iterator[str]:
    """Tensor parallelism cuts every expert, and the shared ones together, evenly.

    A width that is null follows from one that has a rule of its own, and is not told again.
    """
    moe, tensor = config.model.moe, config.parallel.tensor
    if not moe.num_experts:
        return
    for name, size, count, times in (
        ("ffn_hidden_size", moe.ffn_hidden_size, 1, ""),
        (
            "shared_ffn_hidden_size",
            moe.shared_ffn_hidden_size,
            moe.num_shared_experts,
            f", times model.moe.num_shared_experts={moe.num_shared_experts},",
        ),
    ):
        if size is not None and size * count % tensor:
            unit = tensor // math.gcd(tensor, count)
            yield problem(
                f"model.moe.{name}",
                size,
                f"must{times} be divisible by parallel.tensor={tensor}",
                f"set it to {-(-size // unit) * unit}, or change parallel.tensor",
            )


def expert_axis_divides_experts(config: RunConfig) -> Iterator[str]:
    """Every rank of the expert axis holds the same number of experts."""
    expert, count = config.parallel.expert, config.model.moe.num_experts
    if expert > 1 and count == 0:
        yield problem(
            "parallel.expert",
            expert,
            "spreads out experts, but model.moe.num_experts=0",
            "set parallel.expert=1, or model.moe.num_experts",
        )
    elif count % expert:
        divisors = [each for each in range(1, count + 1) if count % each == 0]
        below = max(each for each in divisors if each <= expert)
        yield problem(
            "parallel.expert",
            expert,
            f"must divide model.moe.num_experts={count}",
            f"set parallel.expert={below}",
        )


def zero_with_expert_axis(config: RunConfig) -> Iterator[str]:
    """DeepSpeed's ZeRO 3 gathers a parameter over all replicas, which hold different experts."""
    parallel = config.parallel
    if parallel.expert > 1 and parallel.zero_stage == 3:
        yield problem(
            "parallel.zero_stage",
            parallel.zero_stage,
            f"must be 2 or less with parallel.expert={parallel.expert}, because DeepSpeed's ZeRO 3 "
            "takes all replicas for holders of the same experts",
            "set parallel.zero_stage=2, or parallel.expert=1",
        )


def capacity_counts_whole_sequences(config: RunConfig) -> Iterator[str]:
    """Capacity goes to the first tokens of a sequence, and a context rank sees only some."""
    factor, context = config.model.moe.capacity_factor, config.parallel.context
    if factor is not None and context > 1:
        yield problem(
            "model.moe.capacity_factor",
            factor,
            f"cannot be set with parallel.context={context}, because an expert's first tokens are "
            "counted along the whole sequence",
            "set model.moe.capacity_factor=null, or parallel.context=1",
        )


def enough_experts_for_stages(config: RunConfig) -> Iterator[str]:
    """Each rank of the pipeline can have a block whose experts are spread out."""
    parallel, model = config.parallel, config.model
    found = sum(model.has_experts(layer) for layer in range(model.num_layers))
    if parallel.expert > 1 and 0 < found < parallel.pipeline <= model.num_layers:
        yield problem(
            "parallel.expert",
            parallel.expert,
            f"needs a block with experts on each of the {parallel.pipeline} pipeline ranks, but "
            f"model.moe.every={model.moe.every} makes {found} of model.num_layers="
            f"{model.num_layers} one",
            f"set model.moe.every to {model.num_layers // parallel.pipeline} or less, "
            f"parallel.pipeline to {found} or less, or parallel.expert=1",
        )


def experts_on_every_stage(config: RunConfig) -> Iterator[str]:
    """A partition that counts blocks gives every rank of the pipeline some with experts.

    One that is balanced by parameters has its rule where those are counted: planner/stages.py.
    """
    partition, layers = config.parallel.pipeline_partition, config.model.num_layers
    stages = config.parallel.num_stages
    if partition == "parameters" or stages > layers or not _covers(partition, stages, layers):
        return
    cuts = cut_blocks(partition, [1] * layers, 0, stages)
    yield from expert_stage_problems(config, [stop - start for start, stop in pairwise(cuts)])


def _covers(partition: str | Sequence[int], stages: int, layers: int) -> bool:
    """Whether each of the stages has a block and each block a stage, which is another rule's."""
    if isinstance(partition, str):
        return True
    return (len(partition), sum(partition)) == (stages, layers) and min(partition) > 0


def expert_stage_problems(config: RunConfig, blocks: Sequence[int]) -> Iterator[str]:
    """Whether every rank of a pipeline with that many `blocks` a stage has experts to spread out.

    On one without, DeepSpeed would take part in fewer reductions than on the others, and all ranks
    would wait for ever. Nothing is said where no partition could help, which has its own rule.
    """
    parallel, model = config.parallel, config.model
    cuts = [0, *accumulate(blocks)]
    found = [sum(map(model.has_experts, range(*ends))) for ends in pairwise(cuts)]
    if parallel.expert == 1 or sum(found) < parallel.pipeline:
        return
    folded = parallel.pipeline_schedule == "dualpipev"
    ranks = range(parallel.pipeline)
    bare = [rank for rank in ranks if not (found[rank] or (folded and found[-1 - rank]))]
    if bare:
        stage = bare[0]
        where = f"stages {stage} and {len(blocks) - 1 - stage}" if folded else f"stage {stage}"
        partition = parallel.pipeline_partition
        yield problem(
            "parallel.pipeline_partition",
            partition if isinstance(partition, str) else list(partition),
            f"leaves pipeline {where} without experts, which parallel.expert={parallel.expert} "
            "spreads out over the replicas of every pipeline rank",
            f"{_stages_with_experts(config)}, or parallel.expert=1",
        )


def _stages_with_experts(config: RunConfig) -> str:
    """The fix of a partition: as many blocks with experts for every stage as can be."""
    every, layers = config.model.moe.every, config.model.num_layers
    stages = config.parallel.num_stages
    share, rest = divmod(layers // every, stages)
    if share == 0:
        return "set model.moe.every=1"
    blocks = [every * (share + (stage < rest)) for stage in range(stages)]
    blocks[-1] += layers - sum(blocks)
    return f"set it to {blocks}"


EXPERT_RULES = (
    top_k_of_the_experts,
    experts_in_decoders,
    some_layer_has_experts,
    gate_has_shared_experts,
    tensor_divides_experts,
    expert_axis_divides_experts,
    zero_with_expert_axis,
    capacity_counts_whole_sequences,
    enough_experts_for_stages,
    experts_on_every_stage,
)


def expert_axis_problems(config: RunConfig, replicas: int) -> list[str]:
    """The expert axis is made of `replicas`, the ranks that hold the same dense parameters."""
    expert = config.parallel.expert
    if replicas % expert == 0:
        return []
    count = config.model.moe.num_experts
    fits = [each for each in range(1, expert) if replicas % each == 0 and count % each == 0]
    return [
        problem(
            "parallel.expert",
            expert,
            f"must divide the {replicas} ranks that hold the same dense parameters",
            f"set parallel.expert={max(fits)}, or start a multiple of {expert} times the ranks of "
            "one model",
        )
    ]
