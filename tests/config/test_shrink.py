"""Small copies of configs: legal on any number of ranks, and alike in what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import load_config, parse_config
from roots.config.batch import plan_batch
from roots.config.shrink import VERIFY_STEPS, one_process, reduced_degrees, shrink

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = {"train": ["prefix"], "valid": []}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
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


def test_degrees_stay_where_the_ranks_allow_it_and_shrink_in_turn_where_not() -> None:
    tree = {"tensor": 4, "pipeline": 8, "pipeline_schedule": "dualpipev", "recompute": "full"}
    model = {"num_layers": 24, "num_heads": 16}
    config = parse_config({"parallel": tree, "model": model})
    for ranks, tensor, pipeline in ((64, 4, 8), (32, 4, 8), (8, 4, 2), (4, 2, 2), (1, 1, 1)):
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
    assert shrink(config, 2, DATA).parallel.pipeline_partition == "parameters"


def test_zero_divides_even_small_parameters_and_nothing_is_quantized() -> None:
    parallel = {"zero_stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True}
    small = shrink(parse_config({"parallel": parallel}), 4, DATA).parallel
    assert small.zero_persistence_threshold == 0
    assert small.zero_hpz_partition_size == 4
    assert not small.zero_quantized_weights


def test_experts_stay_experts_on_their_axis() -> None:
    moe = {"num_experts": 64, "top_k": 6, "every": 2, "ffn_hidden_size": 512}
    model = {"num_layers": 12, "hidden_size": 1024, "num_heads": 16, "moe": moe}
    config = parse_config({"model": model, "parallel": {"expert": 8, "tensor": 2}})
    small = shrink(config, 8, DATA)
    assert small.parallel.expert == 4
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


def test_experts_stay_spread_out_whatever_the_other_degrees_and_what_gives_way_is_told() -> None:
    model = {"num_layers": 8, "moe": {"num_experts": 12}}
    cases: tuple[tuple[dict[str, int], int, tuple[int, int, int], tuple[str, ...]], ...] = (
        ({"tensor": 2, "expert": 2}, 4, (2, 1, 2), ()),
        (
            {"tensor": 2, "expert": 4},
            2,
            (1, 1, 2),
            (
                "parallel.tensor=1 instead of 2, to fit 2 ranks with experts spread out",
                "parallel.expert=2 instead of 4, to divide the 2 ranks that hold the same dense "
                "parameters",
            ),
        ),
        (
            {"pipeline": 4, "expert": 3},
            4,
            (1, 2, 2),
            (
                "parallel.pipeline=2 instead of 4, to fit 4 ranks with experts spread out",
                "parallel.expert=2 instead of 3, to divide the 2 ranks that hold the same dense "
                "parameters",
            ),
        ),
        (
            {"expert": 4},
            3,
            (1, 1, 1),
            (
                "parallel.expert=1 instead of 4, to divide the 3 ranks that hold the same dense "
                "parameters",
            ),
        ),
    )
    for parallel, ranks, degrees, lines in cases:
        config = parse_config({"model": model, "parallel": parallel})
        small = shrink(config, ranks, DATA)
        assert degrees == (small.parallel.tensor, small.parallel.pipeline, small.parallel.expert)
        assert reduced_degrees(config, small, ranks) == lines
        assert small.model.moe.num_experts % small.parallel.expert == 0


def test_a_smaller_second_partition_of_zero_is_told() -> None:
    config = parse_config({"parallel": {"zero_stage": 3, "zero_hpz_partition_size": 8}})
    assert reduced_degrees(config, shrink(config, 4, DATA), 4) == (
        "parallel.zero_hpz_partition_size=4 instead of 8, to divide the 4 ranks that hold the same "
        "parameters",
    )
