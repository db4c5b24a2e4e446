"""What pipelines and ZeRO cannot do, with the exact lines that say so."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.errors import RootsError


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        (
            {"pipeline": 2, "pipeline_partition": [1, 2, 1]},
            "parallel.pipeline_partition=[1, 2, 1]: must have one number for each of the 2 stages, "
            "not 3; set it to [2, 2], or to uniform",
        ),
        (
            {"pipeline": 2, "pipeline_partition": [4, 0]},
            "parallel.pipeline_partition=[4, 0]: must give every stage at least one block; "
            "set it to [2, 2], or to uniform",
        ),
        (
            {"pipeline": 2, "pipeline_partition": "halves"},
            "parallel.pipeline_partition='halves': must be parameters, uniform or [b1, b2, ...]; "
            "give stages balanced by parameters, or by number of blocks, or the number of blocks "
            "of every stage as [b1, b2, ...]; dualpipev has 2 x pipeline of them "
            "(default 'parameters')",
        ),
        (
            {"pipeline": 3, "pipeline_schedule": "dualpipev"},
            "parallel.pipeline=3: has 6 stages with parallel.pipeline_schedule=dualpipev, two a "
            "rank, and each needs one of model.num_layers=4; "
            "set parallel.pipeline to 2 or less, or model.num_layers to 6 or more",
        ),
        (
            {"zero_stage": 2, "offload_optimizer": "nvme", "nvme_path": "/disk"},
            "parallel.offload_optimizer='nvme': needs ZeRO 3, but parallel.zero_stage=2; "
            "set parallel.zero_stage=3, or parallel.offload_optimizer=cpu",
        ),
        (
            {"nvme_path": "/disk"},
            "parallel.nvme_path='/disk': has no effect without offload to nvme; "
            "set parallel.offload_optimizer=nvme, or parallel.nvme_path=null",
        ),
    ],
)
def test_what_a_pipeline_and_zero_cannot_do_is_refused(parallel: dict[str, Any], line: str) -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"parallel": parallel})
    assert caught.value.lines == (line,)


def test_both_stacks_are_named_where_a_partition_does_not_cover_them() -> None:
    model = {"architecture": "encoder_decoder", "num_encoder_layers": 1, "num_layers": 5}
    with pytest.raises(RootsError) as caught:
        parse_config({"model": model, "parallel": {"pipeline": 2, "pipeline_partition": [3, 4]}})
    assert caught.value.lines == (
        "parallel.pipeline_partition=[3, 4]: must sum to model.num_encoder_layers + "
        "model.num_layers=6, not 7; set it to [1, 5], or to uniform",
    )


@pytest.mark.parametrize(
    ("pipeline", "blocks", "fits"),
    [
        (2, [3, 5], True),
        (3, [1, 2, 5], True),
        (3, [3, 1, 4], True),
        (4, [2, 1, 3, 2], True),
        (1, [8], True),
        (2, [4, 4], False),
        (4, [1, 1, 2, 4], False),
    ],
)
def test_a_cut_lies_between_encoder_and_decoder(
    pipeline: int, blocks: list[int], fits: bool
) -> None:
    """One stage holds the whole model and is no pipeline."""
    model = {"architecture": "encoder_decoder", "num_encoder_layers": 3, "num_layers": 5}
    parallel = {"pipeline": pipeline, "pipeline_partition": blocks}
    if fits:
        parse_config({"model": model, "parallel": parallel})
        return
    with pytest.raises(RootsError, match="must cut at the end of the encoder"):
        parse_config({"model": model, "parallel": parallel})


def test_dualpipev_needs_micro_batches_to_fill_the_v() -> None:
    parallel = {"pipeline": 2, "pipeline_schedule": "dualpipev", "pipeline_partition": [1, 1, 1, 1]}
    training = {"micro_batch_size": 2, "global_batch_size": 12}
    config = parse_config({"parallel": parallel, "training": training})
    with pytest.raises(RootsError) as caught:
        plan_batch(config, 4)
    assert caught.value.lines == (
        "training.global_batch_size=12: gives 3 micro-batches a step, but "
        "parallel.pipeline_schedule=dualpipev needs at least 2 x parallel.pipeline = 4; "
        "set it to 16 or more, or parallel.pipeline_schedule=1f1b",
    )
    assert plan_batch(config, 2).accumulation == 6


def test_second_partition_divides_the_replicas() -> None:
    config = parse_config({"parallel": {"zero_stage": 3, "zero_hpz_partition_size": 4}})
    assert plan_batch(config, 4).data_parallel == 4
    with pytest.raises(RootsError) as caught:
        plan_batch(config, 2)
    assert caught.value.lines == (
        "parallel.zero_hpz_partition_size=4: must divide the 2 ranks that hold "
        "the same parameters; "
        "set it to 2, or start a multiple of 4 replicas",
    )


def test_offload_is_spelled_as_a_place_or_as_yes() -> None:
    for spelled, place in ((True, "cpu"), (False, "none"), ("cpu", "cpu"), ("none", "none")):
        parallel = {"offload_optimizer": spelled}
        assert parse_config({"parallel": parallel}).parallel.offload_optimizer == place
