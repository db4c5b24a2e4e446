"""Small copies of configs: legal on any number of ranks, and alike in what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import RunConfig, load_config, parse_config
from roots.config.batch import plan_batch
from roots.config.shrink import (
    VERIFY_STEPS,
    Precision,
    default_ranks,
    not_at_work,
    one_process,
    reduced_degrees,
    shrink,
)
from tests.helpers.sources import configs

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = {"train": ["prefix"], "valid": []}


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
def test_every_config_of_ours_has_a_small_copy(path: Path) -> None:
    config = load_config(path)
    for ranks in (1, 2, 3, 8):
        small = shrink(config, ranks, DATA)
        assert plan_batch(small, ranks).accumulation >= 2
        assert plan_batch(one_process(small), 1).global_batch_size == (
            small.training.global_batch_size
        )
        assert small.model.hidden_size <= 128
        assert small.training.steps == VERIFY_STEPS
        assert small.training.precision == "fp32"
        for name in ("position", "norm", "activation", "bias", "tied_embeddings", "dropout"):
            assert getattr(small.model, name) == getattr(config.model, name)
        ratios = [each.model.num_heads / each.model.kv_heads for each in (config, small)]
        assert ratios[0] == ratios[1]


def test_degrees_stay_where_everything_is_at_work_and_make_room_where_not() -> None:
    tree = {"tensor": 4, "pipeline": 8, "pipeline_schedule": "dualpipev", "recompute": "full"}
    model = {"num_layers": 24, "num_heads": 16}
    config = parse_config({"parallel": tree, "model": model})
    for ranks, tensor, pipeline in ((64, 4, 8), (32, 4, 4), (8, 2, 2), (4, 2, 2), (1, 1, 1)):
        small = shrink(config, ranks, DATA).parallel
        assert (small.tensor, small.pipeline) == (tensor, pipeline)
        assert small.pipeline_schedule == ("dualpipev" if pipeline > 1 else "1f1b")
        assert small.recompute == "full"


def test_an_uneven_partition_stays_uneven() -> None:
    parallel = {"pipeline": 3, "pipeline_partition": [10, 4, 10]}
    config = parse_config({"parallel": parallel, "model": {"num_layers": 24}})
    small = shrink(config, 3, DATA)
    assert small.parallel.pipeline_partition == (2, 1, 2)
    assert small.model.num_layers == 5
    assert shrink(config, 2, DATA).parallel.pipeline_partition == (1, 2)
    assert shrink(config, 1, DATA).parallel.pipeline_partition == "parameters"


def test_zero_divides_even_small_parameters_and_nothing_is_quantized() -> None:
    parallel = {"zero_stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True}
    small = shrink(parse_config({"parallel": parallel}), 4, DATA).parallel
    assert small.zero_persistence_threshold == 0
    # Smaller than the four ranks of the first partition, or there would be no second one.
    assert small.zero_hpz_partition_size == 2
    assert not small.zero_quantized_weights


def test_experts_stay_experts_on_their_axis() -> None:
    moe = {"num_experts": 64, "top_k": 6, "every": 2, "ffn_hidden_size": 512}
    model = {"num_layers": 12, "hidden_size": 1024, "num_heads": 16, "moe": moe}
    config = parse_config({"model": model, "parallel": {"expert": 8, "tensor": 2}})
    small = shrink(config, 8, DATA)
    # Two of the four ranks of a model's replicas hold the same experts.
    assert small.parallel.expert == 2
    assert (small.model.moe.num_experts, small.model.moe.top_k, small.model.moe.every) == (8, 6, 2)
    assert small.model.expert_ffn_size * 8 == small.model.ffn_size
    assert any(small.model.has_experts(layer) for layer in range(small.model.num_layers))


def test_both_stacks_of_an_encoder_decoder_are_cut() -> None:
    model = {"architecture": "encoder_decoder", "num_encoder_layers": 24, "source_length": 512}
    config = parse_config(
        {"model": model, "data": {"objective": "pairs", "pad_multiple": 8, "group_batches": 4}}
    )
    small = shrink(config, 2, DATA)
    assert (small.model.encoder_layers, small.model.num_layers) == (2, 2)
    assert small.model.source_tokens == small.model.sequence_length == 16
    assert small.objective == "span_corruption"


def test_what_a_smaller_degree_leaves_without_effect_goes_too() -> None:
    tree = {"tensor": 2, "pipeline": 4, "context": 2, "sequence": True}
    small = shrink(parse_config({"parallel": tree}), 2, DATA).parallel
    assert not small.sequence or small.tensor > 1
    hpz = {"context": 2, "zero_stage": 3, "zero_hpz_partition_size": 2}
    assert shrink(parse_config({"parallel": hpz}), 2, DATA).parallel.zero_hpz_partition_size == 2


def test_every_stage_of_a_small_copy_has_experts() -> None:
    model = {"num_layers": 8, "moe": {"num_experts": 4, "every": 2}}
    for partition in ("parameters", [2, 6]):
        parallel = {"pipeline": 2, "expert": 2, "pipeline_partition": partition}
        small = shrink(parse_config({"model": model, "parallel": parallel}), 4, DATA)
        assert (small.model.num_layers, small.model.moe.every) == (4, 2)
        assert small.parallel.pipeline_partition == "uniform"
    pair = {"architecture": "encoder_decoder", "num_layers": 4}
    config = parse_config(
        {"model": pair, "parallel": {"pipeline": 2, "pipeline_partition": [4, 4]}}
    )
    assert shrink(config, 2, DATA).model.encoder_layers == 2


def moe_config(**parallel: int) -> RunConfig:
    model = {"num_layers": 8, "num_heads": 8, "moe": {"num_experts": 24}}
    return parse_config({"model": model, "parallel": parallel})


NO_COPIES = "ranks that hold the same ones of the experts that are spread out"
NO_DATA = "ranks that hold the same parameters and have samples of their own"


@pytest.mark.parametrize(
    ("config", "ranks", "degrees", "lines"),
    [
        (moe_config(tensor=2, expert=2), 8, {"tensor": 2, "expert": 2}, ()),
        (
            moe_config(tensor=2, expert=4),
            4,
            {"tensor": 2, "expert": 2},
            (
                "parallel.expert=2 instead of 4, to fit 4 ranks",
                f"{NO_COPIES}; --ranks 8 has them",
            ),
        ),
        (
            moe_config(pipeline=4, expert=3),
            2,
            {"expert": 2},
            (
                "parallel.pipeline=1 instead of 4, to fit 2 ranks",
                "parallel.expert=2 instead of 3, to fit 2 ranks",
                "layers cut into stages; --ranks 8 has them",
                f"{NO_COPIES}; --ranks 8 has them",
            ),
        ),
        (
            moe_config(expert=4),
            4,
            {"expert": 2},
            ("parallel.expert=2 instead of 4, to fit 4 ranks",),
        ),
        (moe_config(expert=4), 8, {"expert": 4}, ()),
        (moe_config(tensor=4), 8, {"tensor": 4}, ()),
        (
            moe_config(tensor=2, pipeline=2),
            4,
            {"tensor": 2, "pipeline": 2},
            (f"{NO_DATA}; --ranks 8 has them",),
        ),
        (
            moe_config(zero_stage=3, zero_hpz_partition_size=8),
            2,
            {"zero_hpz_partition_size": 2},
            (
                "parallel.zero_hpz_partition_size=2 instead of 8, to fit 2 ranks",
                "second partitions of ZeRO that are smaller than the first; --ranks 4 has them",
            ),
        ),
        (moe_config(), 1, {}, (f"{NO_DATA}; --ranks 2 has them",)),
    ],
)
def test_degrees_have_the_most_at_work_and_what_is_not_is_told(
    config: RunConfig, ranks: int, degrees: dict[str, int], lines: tuple[str, ...]
) -> None:
    small = shrink(config, ranks, DATA)
    names = ("tensor", "pipeline", "context", "expert", "zero_hpz_partition_size")
    found = {name: getattr(small.parallel, name) for name in names}
    assert {name: degree for name, degree in found.items() if degree > 1} == degrees
    told = (*reduced_degrees(config, small, ranks), *not_at_work(config, small, ranks))
    assert told == lines
    assert small.model.moe.num_experts % small.parallel.expert == 0


@pytest.mark.parametrize(
    ("parallel", "most", "ranks"),
    [
        # One axis and two replicas; replicated experts as well.
        ({}, 8, 2),
        ({"tensor": 8}, 8, 4),
        ({"tensor": 8, "pipeline": 8}, 64, 8),
        ({"tensor": 2, "pipeline": 2}, 7, 4),
        ({"tensor": 2, "pipeline": 2}, 2, 2),
        ({"expert": 8}, 8, 4),
        ({"expert": 2}, 8, 4),
        ({"expert": 4}, 3, 2),
        ({"expert": 4}, 1, 1),
        # The ranks of a sequence hold the same parameters too.
        ({"expert": 2, "context": 2}, 8, 4),
        ({"expert": 4, "tensor": 2, "pipeline": 2}, 64, 16),
        ({"expert": 4, "tensor": 2, "pipeline": 2}, 8, 8),
        ({"zero_stage": 3, "zero_hpz_partition_size": 8}, 8, 4),
        ({"tensor": 4}, 3, 2),
    ],
)
def test_default_ranks_are_the_fewest_with_everything_at_work(
    parallel: dict[str, int], most: int, ranks: int
) -> None:
    config = moe_config(**parallel)
    assert default_ranks(config, most) == ranks
    # What is missing is there on the number of ranks that the line names.
    for line in not_at_work(config, shrink(config, ranks, DATA), ranks):
        enough = int(line.split("--ranks ")[1].split()[0])
        assert not not_at_work(config, shrink(config, enough, DATA), enough)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_small_copy_computes_as_it_is_told(precision: Precision) -> None:
    config = parse_config({"loss_scale": {"initial_power": 30, "minimum": 2.0**20}})
    small = shrink(config, 2, DATA, precision)
    assert small.training.precision == precision
    assert one_process(small).training.precision == precision
    # It doubles twice in ten steps.
    assert precision != "fp16" or (small.loss_scale.initial_power, small.loss_scale.window) == (
        10,
        4,
    )


def test_held_out_data_are_evaluated_after_the_last_step() -> None:
    config = parse_config({"evaluation": {"every_steps": 0}})
    assert shrink(config, 2, DATA).evaluation.every_steps == 0
    small = shrink(config, 2, {"train": ["prefix"], "valid": ["other"]})
    assert (small.evaluation.every_steps, small.evaluation.steps) == (VERIFY_STEPS, 2)
