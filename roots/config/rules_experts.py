"""Rules of mixtures of experts and of expert parallelism; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    """Tensor parallelism cuts every expert, and the shared ones together, evenly."""
    model, tensor = config.model, config.parallel.tensor
    if not model.moe.num_experts:
        return
    for name, size in (
        ("ffn_hidden_size", model.expert_ffn_size),
        ("shared_ffn_hidden_size", model.shared_ffn_size),
    ):
        if size % tensor:
            yield problem(
                f"model.moe.{name}",
                size,
                f"must be divisible by parallel.tensor={tensor}",
                f"set it to {-(-size // tensor) * tensor}, or change parallel.tensor",
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


EXPERT_RULES = (
    top_k_of_the_experts,
    experts_in_decoders,
    some_layer_has_experts,
    gate_has_shared_experts,
    tensor_divides_experts,
    expert_axis_divides_experts,
    zero_with_expert_axis,
    capacity_counts_whole_sequences,
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
