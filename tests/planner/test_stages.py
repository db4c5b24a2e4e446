"""Stages as the config tells them, before any of their modules is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.cli import main as cli
from roots.config import parse_config
from roots.config.run import RunConfig
from roots.models.build import model_layers
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.planner.stages import balanced_stages_have_experts, block_weights, blocks_of_stages

PAIR = {"architecture": "encoder_decoder", "num_encoder_layers": 3, "num_layers": 2}
# A table beside the first block that weighs more than a block with experts.
HEAVY = {
    "hidden_size": 32,
    "num_layers": 4,
    "vocab_size": 61,
    "token_types": 4000,
    "moe": {"num_experts": 4, "every": 2},
}


@pytest.mark.parametrize(
    "model",
    [
        {"num_layers": 3, "tied_embeddings": False},
        {"num_layers": 3, "norm_position": "post", "position": "rotary"},
        {"num_layers": 3, "head_transform": True, "head_bias": True, "embedding_norm": True},
        {"num_layers": 4, "moe": {"num_experts": 4, "every": 2}},
        PAIR,
    ],
    ids=str,
)
def test_weights_of_blocks_are_the_parameters_that_lie_with_them(model: dict[str, Any]) -> None:
    config = parse_config({"model": model})
    expected: list[int] = []
    before = 0
    for layer in model_layers(config.model, Mesh.single(), BuildOptions(device="meta")):
        size = sum(parameter.numel() for parameter in layer.build().parameters())
        if layer.kind in ("block", "source_block"):
            expected.append(before + size)
            before = 0
        elif expected:
            expected[-1] += size
        else:
            before = size
    assert block_weights(config.model) == expected


def test_stages_follow_the_partition() -> None:
    def blocks(model: dict[str, Any], **parallel: Any) -> list[int]:
        return blocks_of_stages(parse_config({"model": model, "parallel": parallel}))

    assert blocks(HEAVY, pipeline=2) == [1, 3]
    assert blocks(HEAVY, pipeline=2, pipeline_partition="uniform") == [2, 2]
    assert blocks(HEAVY, pipeline=2, pipeline_partition=[3, 1]) == [3, 1]
    assert blocks(HEAVY, pipeline=2, pipeline_schedule="dualpipev") == [1, 1, 1, 1]
    assert blocks(PAIR, pipeline=2) == [3, 2]
    assert blocks(HEAVY) == [4]


def lines_of(parallel: dict[str, Any], model: dict[str, Any] = HEAVY) -> list[str]:
    config = RunConfig.model_validate({"model": model, "parallel": parallel})
    return list(balanced_stages_have_experts(config))


def test_a_balanced_stage_without_experts_is_told() -> None:
    assert lines_of({"pipeline": 2, "expert": 2}) == [
        "parallel.pipeline_partition='parameters': leaves pipeline stage 0 without experts, which "
        "parallel.expert=2 spreads out over the replicas of every pipeline rank; "
        "set it to [2, 2], or parallel.expert=1"
    ]
    for parallel in (
        {"pipeline": 2},
        {"expert": 2},
        {"pipeline": 2, "expert": 2, "pipeline_partition": "uniform"},
        # Refused by rules of their own, once.
        {"pipeline": 5, "expert": 2},
        {"pipeline": 3, "expert": 2},
    ):
        assert lines_of(parallel) == []
    assert lines_of({"pipeline": 2, "expert": 2}, {**HEAVY, **PAIR}) == []


@pytest.mark.parametrize(
    "command",
    [("train",), ("config", "show"), ("config", "schema"), ("config", "deepspeed")],
    ids=" ".join,
)
def test_every_command_that_shows_or_trains_a_config_asks_it(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {hidden_size: 32, num_layers: 4, vocab_size: 61, token_types: 4000, "
        "moe: {num_experts: 4, every: 2}}\n"
        "data: {train: [somewhere]}\n"
        "parallel: {pipeline: 2, expert: 2}\n"
    )
    with pytest.raises(SystemExit):
        cli.main([*command, str(tmp_path / "run.yaml")])
    assert "='parameters': leaves pipeline stage 0 without experts" in capsys.readouterr().err
