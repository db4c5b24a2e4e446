"""Rules of experts and of their axis, each with the exact line it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.config.rules.experts import EXPERT_RULES
from roots.errors import RootsError
from tests.helpers.refusals import refusals

FOLDED = {"pipeline": 2, "pipeline_schedule": "dualpipev"}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "experts_in_decoders": (
        {"model": {"architecture": "encoder", "position": "rotary", "moe": {"num_experts": 4}}},
        "model.moe.num_experts=4: needs model.architecture=decoder, but it is encoder; "
        "set model.moe.num_experts=0, or model.architecture=decoder",
    ),
    "top_k_of_the_experts": (
        {"model": {"moe": {"num_experts": 4, "top_k": 5}}},
        "model.moe.top_k=5: must be at most model.moe.num_experts=4; set it to 4 or less",
    ),
    "some_layer_has_experts": (
        {"model": {"moe": {"num_experts": 4, "every": 5}}},
        "model.moe.every=5: leaves none of model.num_layers=4 blocks with experts; "
        "set it to 4 or less, or model.moe.num_experts=0",
    ),
    "gate_has_shared_experts": (
        {"model": {"moe": {"num_experts": 4, "shared_expert_gate": True}}},
        "model.moe.shared_expert_gate=True: has no effect with model.moe.num_shared_experts=0; "
        "set model.moe.num_shared_experts, or model.moe.shared_expert_gate=false",
    ),
    "tensor_divides_experts": (
        {
            "model": {"moe": {"num_experts": 4, "ffn_hidden_size": 30}},
            "parallel": {"tensor": 4},
        },
        "model.moe.ffn_hidden_size=30: must be divisible by parallel.tensor=4; "
        "set it to 32, or change parallel.tensor",
    ),
    "enough_experts_for_stages": (
        {
            "model": {"num_layers": 8, "moe": {"num_experts": 4, "every": 5}},
            "parallel": {"expert": 2, "pipeline": 2},
        },
        "parallel.expert=2: needs a block with experts on each of the 2 pipeline ranks, but "
        "model.moe.every=5 makes 1 of model.num_layers=8 one; set model.moe.every to 4 or less, "
        "parallel.pipeline to 1 or less, or parallel.expert=1",
    ),
    "experts_on_every_stage": (
        {
            "model": {"num_layers": 6, "moe": {"num_experts": 4, "every": 2}},
            "parallel": {"expert": 2, "pipeline": 2, "pipeline_partition": [1, 5]},
        },
        "parallel.pipeline_partition=[1, 5]: leaves pipeline stage 0 without experts, which "
        "parallel.expert=2 spreads out over the replicas of every pipeline rank; "
        "set it to [4, 2], or parallel.expert=1",
    ),
    "expert_axis_divides_experts": (
        {"model": {"moe": {"num_experts": 8}}, "parallel": {"expert": 3}},
        "parallel.expert=3: must divide model.moe.num_experts=8; set parallel.expert=2",
    ),
    "zero_with_expert_axis": (
        {"model": {"moe": {"num_experts": 8}}, "parallel": {"expert": 2, "zero_stage": 3}},
        "parallel.zero_stage=3: must be 2 or less with parallel.expert=2, because DeepSpeed's ZeRO "
        "3 takes all replicas for holders of the same experts; "
        "set parallel.zero_stage=2, or parallel.expert=1",
    ),
    "capacity_counts_whole_sequences": (
        {
            "model": {"moe": {"num_experts": 4, "capacity_factor": 1.5}},
            "parallel": {"context": 2},
        },
        "model.moe.capacity_factor=1.5: cannot be set with parallel.context=2, because an expert's "
        "first tokens are counted along the whole sequence; "
        "set model.moe.capacity_factor=null, or parallel.context=1",
    ),
}


@pytest.mark.parametrize("rule", [rule.__name__ for rule in EXPERT_RULES])
def test_violated_rule_says_field_value_rule_and_fix(rule: str) -> None:
    tree, line = CASES[rule]
    assert refusals(tree) == (line,)


def test_a_width_of_experts_is_told_once_and_as_it_was_written() -> None:
    """Three shared experts of 30 are one MLP of 90, which nobody wrote."""
    moe = {"num_experts": 4, "num_shared_experts": 3, "ffn_hidden_size": 32}
    tree = {"model": {"moe": {**moe, "shared_ffn_hidden_size": 30}}, "parallel": {"tensor": 4}}
    with pytest.raises(RootsError) as caught:
        parse_config(tree)
    assert caught.value.lines == (
        "model.moe.shared_ffn_hidden_size=30: must, times model.moe.num_shared_experts=3, be "
        "divisible by parallel.tensor=4; set it to 32, or change parallel.tensor",
    )
    two = {**moe, "num_shared_experts": 2, "shared_ffn_hidden_size": 30}
    parse_config({"model": {"moe": two}, "parallel": {"tensor": 4}})
    experts = {"num_experts": 4, "num_shared_experts": 3}
    with pytest.raises(RootsError) as caught:
        parse_config({"model": {"ffn_hidden_size": 30, "moe": experts}, "parallel": {"tensor": 4}})
    assert caught.value.lines == (
        "parallel.tensor=4: must divide model.ffn_hidden_size=30; "
        "set parallel.tensor to one of 2, 3, 5, 6, or change model.ffn_hidden_size",
    )


def test_expert_axis_of_a_dense_model_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"parallel": {"expert": 2}})
    assert caught.value.lines == (
        "parallel.expert=2: spreads out experts, but model.moe.num_experts=0; "
        "set parallel.expert=1, or model.moe.num_experts",
    )


@pytest.mark.parametrize(
    ("every", "parallel", "line"),
    [
        (2, {"pipeline": 3, "pipeline_partition": [3, 2, 2]}, None),
        (2, {"pipeline": 3, "pipeline_partition": [5, 1, 1], "expert": 1}, None),
        (3, {"pipeline": 2, "pipeline_partition": "uniform"}, None),
        (
            2,
            {"pipeline": 3, "pipeline_partition": [5, 1, 1]},
            "parallel.pipeline_partition=[5, 1, 1]: leaves pipeline stage 2 without experts, which "
            "parallel.expert=2 spreads out over the replicas of every pipeline rank; "
            "set it to [2, 2, 3], or parallel.expert=1",
        ),
        # A rank of a V has two stages, so that one of them may have none.
        (3, {**FOLDED, "pipeline_partition": [1, 1, 1, 4]}, None),
        (
            3,
            {**FOLDED, "pipeline_partition": [2, 1, 3, 1]},
            "parallel.pipeline_partition=[2, 1, 3, 1]: leaves pipeline stages 0 and 3 without "
            "experts, which parallel.expert=2 spreads out over the replicas of every pipeline "
            "rank; set model.moe.every=1, or parallel.expert=1",
        ),
    ],
)
def test_spread_experts_are_on_every_rank_of_a_pipeline(
    every: int, parallel: dict[str, Any], line: str | None
) -> None:
    model = {"num_layers": 7, "moe": {"num_experts": 4, "every": every}}
    tree = {"model": model, "parallel": {"expert": 2, **parallel}}
    if line is None:
        parse_config(tree)
        return
    assert refusals(tree) == (line,)


@pytest.mark.parametrize(
    ("layers", "parallel", "blocks"),
    [
        (8, {"pipeline": 2}, [1, 7]),
        (9, {"pipeline": 4}, [1, 3, 4, 1]),
        (11, {"pipeline": 3}, [1, 9, 1]),
        (9, FOLDED, [1, 3, 4, 1]),
        (11, FOLDED, [1, 8, 1, 1]),
    ],
)
def test_the_partition_that_is_proposed_has_experts_everywhere(
    layers: int, parallel: dict[str, Any], blocks: list[int]
) -> None:
    model = {"num_layers": layers, "moe": {"num_experts": 4, "every": 2}}
    parallel = {**parallel, "expert": 2}
    with pytest.raises(RootsError) as caught:
        parse_config({"model": model, "parallel": {**parallel, "pipeline_partition": blocks}})
    fix = caught.value.lines[0].split("set it to ")[1].split(", or")[0]
    parse_config({"model": model, "parallel": {**parallel, "pipeline_partition": json.loads(fix)}})


def test_an_empty_stage_is_told_by_its_own_rule_alone() -> None:
    model = {"num_layers": 4, "moe": {"num_experts": 4}}
    parallel = {"pipeline": 2, "expert": 2, "pipeline_partition": [4, 0]}
    with pytest.raises(RootsError) as caught:
        parse_config({"model": model, "parallel": parallel})
    (line,) = caught.value.lines
    assert "must give every stage at least one block" in line


def test_expert_axis_that_does_not_divide_the_replicas_is_refused() -> None:
    tree = {
        "model": {"moe": {"num_experts": 8}},
        "parallel": {"expert": 4, "tensor": 2},
        "training": {"micro_batch_size": 1, "global_batch_size": 12},
    }
    with pytest.raises(RootsError) as caught:
        plan_batch(parse_config(tree), 12)
    assert caught.value.lines == (
        "parallel.expert=4: must divide the 6 ranks that hold the same dense parameters; "
        "set parallel.expert=2, or start a multiple of 4 times the ranks of one model",
    )
