"""Rules that span fields, each with the exact line it gives."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.config.rules.anomaly import ANOMALY_RULES
from roots.config.rules.checkpoint import CHECKPOINT_RULES
from roots.config.rules.data import DATA_RULES
from roots.config.rules.encoder import ENCODER_RULES
from roots.config.rules.evaluation import EVALUATION_RULES
from roots.config.rules.experts import EXPERT_RULES
from roots.config.rules.table import RULES
from roots.errors import RootsError
from tests.helpers.refusals import refusals

# Rules with a test file of their own.
ELSEWHERE = (
    *(ANOMALY_RULES + CHECKPOINT_RULES + EVALUATION_RULES),
    *(DATA_RULES + ENCODER_RULES + EXPERT_RULES),
)
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "heads_divide_hidden": (
        {"model": {"hidden_size": 64, "num_heads": 5, "num_kv_heads": 5}},
        "model.num_heads=5: must divide model.hidden_size=64; set it to one of 2, 4, 8, 16, "
        "or set model.head_dim",
    ),
    "kv_heads_divide_heads": (
        {"model": {"num_heads": 8, "num_kv_heads": 3}},
        "model.num_kv_heads=3: must divide model.num_heads=8; set it to one of 1, 2, 4, 8",
    ),
    "rotary_needs_even_head": (
        {"model": {"position": "rotary", "rotary_fraction": 0.01}},
        "model.rotary_fraction=0.01: must leave at least 2 of 64 dimensions to rotate; "
        "raise it, or use fewer heads",
    ),
    "rotary_scaling_is_whole": (
        {"model": {"position": "rotary", "rotary_scaling": {"kind": "yarn", "factor": 4}}},
        "model.rotary_scaling.original_length: must be set with model.rotary_scaling.kind=yarn; "
        "set it to the sequence length of the model before the stretch",
    ),
    "weights_or_resume": (
        {"checkpoint": {"weights": "imported", "resume": "other/step_00000100"}},
        "checkpoint.weights='imported': cannot stand beside checkpoint.resume=other/step_00000100; "
        "set checkpoint.resume=auto, which goes on from this run's own checkpoints, "
        "or checkpoint.weights=null",
    ),
    "tensor_divides_model": (
        {"parallel": {"tensor": 8}, "model": {"num_heads": 8, "num_kv_heads": 4}},
        "parallel.tensor=8: must divide model.num_kv_heads=4; "
        "set parallel.tensor to one of 2, 4, or change model.num_kv_heads",
    ),
    "enough_layers_for_stages": (
        {"parallel": {"pipeline": 5}},
        "parallel.pipeline=5: must be at most model.num_layers=4; "
        "set parallel.pipeline to 4 or less, or add layers",
    ),
    "schedule_needs_pipeline": (
        {"parallel": {"pipeline_schedule": "dualpipev"}},
        "parallel.pipeline_schedule='dualpipev': needs ranks to send to, but "
        "parallel.pipeline=1; set parallel.pipeline=2, or parallel.pipeline_schedule=1f1b",
    ),
    "partition_covers_layers": (
        {"parallel": {"pipeline": 2, "pipeline_partition": [3, 2]}},
        "parallel.pipeline_partition=[3, 2]: must sum to model.num_layers=4, not 5; "
        "set it to [2, 2], or to uniform",
    ),
    "every_of_recompute": (
        {"parallel": {"recompute_every": 2}},
        "parallel.recompute_every=2: has no effect with parallel.recompute=none; "
        "set parallel.recompute=full or selective, or parallel.recompute_every=1",
    ),
    "nvme_needs_a_place": (
        {"parallel": {"offload_optimizer": "nvme", "zero_stage": 3}},
        "parallel.nvme_path: must be set, because parallel.offload_optimizer=nvme; "
        "set it to a folder of a local disk, or offload to cpu",
    ),
    "zero_plus_plus_needs_zero_3": (
        {"parallel": {"zero_quantized_weights": True}},
        "parallel.zero_quantized_weights=True: needs ZeRO 3, but parallel.zero_stage=1; "
        "set parallel.zero_stage=3, or parallel.zero_quantized_weights=false",
    ),
    "hpz_needs_neighbours": (
        {"parallel": {"zero_hpz_partition_size": 2, "zero_stage": 3, "tensor": 2}},
        "parallel.zero_hpz_partition_size=2: cannot stand beside parallel.tensor=2, because "
        "DeepSpeed partitions among neighbouring ranks, and those hold different tensor shards; "
        "set parallel.tensor=1, or parallel.zero_hpz_partition_size=1",
    ),
    "stages_hold_one_stack": (
        {
            "model": {
                "architecture": "encoder_decoder",
                "num_encoder_layers": 3,
                "num_layers": 5,
            },
            "parallel": {"pipeline": 3, "pipeline_partition": [2, 2, 4]},
        },
        "parallel.pipeline_partition=[2, 2, 4]: must cut at the end of the encoder, so that its "
        "first numbers sum to 3 (model.num_encoder_layers), because a stage of both stacks runs "
        "the encoder's part backward twice; set it to [2, 1, 5], or to uniform",
    ),
    "zero_with_pipeline": (
        {"parallel": {"pipeline": 2, "zero_stage": 2}},
        "parallel.zero_stage=2: must be 0 or 1 with parallel.pipeline=2, because the pipeline "
        "keeps whole gradients between micro-batches and ZeRO 2 and 3 shard them; "
        "set parallel.zero_stage=1, or parallel.pipeline=1",
    ),
    "offload_needs_zero": (
        {"parallel": {"offload_parameters": True, "zero_stage": 2}},
        "parallel.offload_parameters='cpu': needs ZeRO 3, but parallel.zero_stage=2; "
        "set parallel.zero_stage=3",
    ),
    "offload_with_tied_stages": (
        {"parallel": {"pipeline": 2, "offload_optimizer": True}},
        "parallel.offload_optimizer='cpu': cannot run in bf16 with parallel.pipeline=2 and tied "
        "embeddings, because DeepSpeed then never sums the gradients of the two copies; "
        "set model.tied_embeddings=false, training.precision=fp16, or no offload",
    ),
    "scale_floor_below_start": (
        {"loss_scale": {"initial_power": 4, "minimum": 32}},
        "loss_scale.minimum=32.0: must be at most the first scale, "
        "2^loss_scale.initial_power=16; lower it, or raise loss_scale.initial_power",
    ),
    "context_cuts_sequence": (
        {"parallel": {"context": 4, "context_method": "ring"}, "model": {"sequence_length": 100}},
        "parallel.context=4: must cut model.sequence_length=100 into 8 equal parts, because a ring "
        "gives every rank an early and a late one; "
        "set model.sequence_length to 96, or parallel.context to 2",
    ),
    "ulysses_shares_heads": (
        {"parallel": {"context": 4, "tensor": 2}},
        "parallel.context=4: must divide the 2 heads of a tensor rank (model.num_heads=4 / "
        "parallel.tensor=2) under parallel.context_method=ulysses; "
        "set it to 2, or parallel.context_method=ring",
    ),
    "ring_without_attention_dropout": (
        {
            "parallel": {"context": 2, "context_method": "ring"},
            "model": {"attention_dropout": 0.1},
        },
        "model.attention_dropout=0.1: must be 0 with parallel.context_method=ring, because a mask "
        "is drawn by positions among all keys and a ring has one block of them at a time; "
        "set model.attention_dropout=0, or parallel.context_method=ulysses",
    ),
    "ring_needs_log_sum_exp": (
        {
            "parallel": {"context": 2, "context_method": "ring"},
            "ops": {"attention": "torch_sdpa"},
        },
        "ops.attention='torch_sdpa': returns no log-sum-exp, by which parallel.context_method=ring "
        "merges blocks of keys; set ops.attention=auto, or parallel.context_method=ulysses",
    ),
    "sequence_cuts_tokens": (
        {"parallel": {"sequence": True}},
        "parallel.sequence=True: cuts tokens over tensor ranks, but parallel.tensor=1; "
        "set parallel.sequence=false, or parallel.tensor to 2 or more",
    ),
    "schedule_lengths_once": (
        {"schedule": {"warmup_steps": 3, "warmup_tokens": 9}},
        "schedule.warmup_tokens=9: cannot stand beside schedule.warmup_steps=3; "
        "keep one of the two",
    ),
    "warmup_within_run": (
        {"schedule": {"warmup_steps": 21}, "training": {"steps": 20}},
        "schedule.warmup_steps=21: must be at most training.steps=20; "
        "set it to 2, or raise training.steps",
    ),
    "decay_has_an_end": (
        {"schedule": {"name": "constant", "decay_steps": 5}},
        "schedule.decay_steps=5: has no effect with schedule.name=constant; "
        "set schedule.decay_steps=null, or schedule.name to cosine, linear or wsd",
    ),
    "peak_before_the_decay": (
        {"schedule": {"warmup_steps": 8, "decay_steps": 5}, "training": {"steps": 20}},
        "schedule.decay_steps=5: must be after the warmup, schedule.warmup_steps=8, but the decay "
        "would end at step 5 and the warmup at step 8; raise it, set it to null for "
        "training.steps=20, or shorten the warmup",
    ),
    "minimum_below_peak": (
        {"schedule": {"min_learning_rate": 0.1}, "optimizer": {"learning_rate": 0.01}},
        "schedule.min_learning_rate=0.1: must be at most optimizer.learning_rate=0.01; "
        "set it to 0.001 or less",
    ),
    "split_is_a_distribution": (
        {"data": {"split": "0,1,1"}},
        "data.split='0,1,1': must be three weights of at least 0, the first above 0; "
        "use for example 969,30,1",
    ),
}


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES if rule not in ELSEWHERE])
def test_violated_rule_says_field_value_rule_and_fix(rule: str) -> None:
    tree, line = CASES[rule]
    assert refusals(tree) == (line,)


def test_tensor_degree_that_does_not_divide_heads_is_named_for_every_size() -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"parallel": {"tensor": 3}})
    assert caught.value.lines[0] == (
        "parallel.tensor=3: must divide model.num_heads=4; "
        "set parallel.tensor to one of 1, 2, 4, or change model.num_heads"
    )


def test_offloaded_optimizer_needs_zero() -> None:
    with pytest.raises(RootsError, match=r"needs ZeRO 1 or above, but parallel.zero_stage=0"):
        parse_config({"parallel": {"offload_optimizer": True, "zero_stage": 0}})


def test_warmup_may_last_the_whole_run_and_no_longer() -> None:
    training = {"steps": 20, "global_batch_size": 8}
    tokens = 20 * 8 * 256
    parse_config({"training": training, "schedule": {"warmup_steps": 20}})
    parse_config({"training": training, "schedule": {"warmup_tokens": tokens}})
    with pytest.raises(RootsError) as caught:
        parse_config({"training": training, "schedule": {"warmup_tokens": tokens + 1}})
    assert caught.value.lines == (
        f"schedule.warmup_tokens={tokens + 1}: must be at most the {tokens} tokens of "
        f"training.steps=20; set it to {tokens // 10}, or raise training.steps",
    )


def test_decay_in_tokens_needs_a_schedule_that_ends() -> None:
    parse_config({"schedule": {"name": "wsd", "decay_tokens": 9}})
    with pytest.raises(RootsError, match=r"^schedule\.decay_tokens=9: has no effect with"):
        parse_config({"schedule": {"name": "inverse_sqrt", "decay_tokens": 9}})


def test_batch_plan_derives_data_parallel_size_and_accumulation() -> None:
    config = parse_config(
        {
            "parallel": {"tensor": 2, "pipeline": 2},
            "training": {"micro_batch_size": 2, "global_batch_size": 24},
        }
    )
    plan = plan_batch(config, 12)
    assert (plan.data_parallel, plan.accumulation) == (3, 4)
    assert plan.micro_batch_size * plan.accumulation * plan.data_parallel == 24


def test_global_batch_that_does_not_divide_is_refused() -> None:
    config = parse_config({"training": {"micro_batch_size": 4, "global_batch_size": 12}})
    with pytest.raises(RootsError) as caught:
        plan_batch(config, 2)
    assert caught.value.lines == (
        "training.global_batch_size=12: must be a multiple of training.micro_batch_size=4 "
        "x data-parallel size 2 = 8; set it to 8 or 16",
    )


def test_world_size_that_does_not_fit_the_layout_is_refused() -> None:
    config = parse_config({"parallel": {"tensor": 2, "pipeline": 2}})
    with pytest.raises(RootsError) as caught:
        plan_batch(config, 6)
    assert caught.value.lines == (
        "world size=6: must be a multiple of parallel.tensor x parallel.context x "
        "parallel.pipeline = 4; "
        "start 4 ranks, or change the degrees",
    )


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            {"position": "rotary", "rotary_scaling": {"factor": 2.0}},
            "model.rotary_scaling.factor=2.0: has no effect with kind=none; "
            "set model.rotary_scaling.kind to linear, ntk, yarn or llama3",
        ),
        (
            {"rotary_scaling": {"kind": "linear", "factor": 2.0}},
            "model.rotary_scaling.kind='linear': needs model.position=rotary, but it is learned; "
            "set model.position=rotary, or kind=none",
        ),
        (
            {
                "position": "rotary",
                "rotary_scaling": {"kind": "llama3", "original_length": 8, "low_frequency": 4},
            },
            "model.rotary_scaling.low_frequency=4.0: must be below "
            "model.rotary_scaling.high_frequency=4; use 1 and 4",
        ),
    ],
)
def test_stretch_of_rotary_positions_is_whole(model: dict[str, Any], line: str) -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"model": model})
    assert caught.value.lines == (line,)


def test_objective_follows_from_the_architecture_where_none_is_named() -> None:
    for architecture, objective in (
        ("decoder", "causal"),
        ("encoder_decoder", "span_corruption"),
        ("encoder", "masked"),
    ):
        assert parse_config({"model": {"architecture": architecture}}).objective == objective


def test_padding_multiple_of_full_rows_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"data": {"pad_multiple": 8}})
    assert caught.value.lines == (
        "data.pad_multiple=8: has no effect with data.objective=causal, whose rows are full; "
        "set data.pad_multiple=null",
    )
