"""The blocks of every pipeline stage, known from the config before any process starts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from roots.config.model import ModelConfig
from roots.config.partition import cut_blocks
from roots.config.rules.experts import expert_stage_problems
from roots.config.run import RunConfig
from roots.planner.parameters import layer_parameters


def blocks_of_stages(config: RunConfig) -> list[int]:
    """How many blocks each of `parallel.num_stages` holds, in the order of the layers: first the
    encoder's that a decoder reads. Needs at least as many blocks as stages."""
    parallel, model = config.parallel, config.model
    weights = block_weights(model)
    cuts = cut_blocks(
        parallel.pipeline_partition, weights, model.encoder_layers, parallel.num_stages
    )
    return [stop - start for start, stop in pairwise(cuts)]


def block_weights(model: ModelConfig) -> list[int]:
    """Parameters of every block, with those of the layers that stay on its stage: the embedding
    beside the first block, and whatever else is no block beside the one before it."""
    weights: list[int] = []
    waiting = 0
    for name, size in layer_parameters(model).items():
        if "layers." in name:
            weights.append(waiting + size)
            waiting = 0
        elif weights:
            weights[-1] += size
        else:
            waiting += size
    return weights


def balanced_stages_have_experts(config: RunConfig) -> Iterable[str]:
    """What `roots train` and `roots config` ask of stages that are balanced by parameters; the
    config's own rules count only blocks, see experts_on_every_stage."""
    parallel, model = config.parallel, config.model
    if parallel.pipeline_partition != "parameters" or parallel.expert == 1:
        return []
    # Both are refused by rules of their own.
    if model.architecture != "decoder" or parallel.num_stages > model.num_layers:
        return []
    return expert_stage_problems(config, blocks_of_stages(config))
