"""What a run says of itself: model, layout, batch, data, folder; and at its end what to do next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roots.config import RunConfig, parse_config
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.data.indexed import IndexedWriter
from roots.parallel.topology import Topology
from roots.training.callbacks.overview import closing_lines, describe_layout, opening_lines


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    with IndexedWriter(tmp_path / "text", vocab_size=256) as writer:
        for length in (300, 500):
            writer.add(np.arange(length) % 256)
        writer.finish("no tokenizer", 0)
    return parse_config(
        {
            "run": {"name": "here", "directory": str(tmp_path / "runs")},
            "model": {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 2,
                "vocab_size": 256,
                "sequence_length": 40,
            },
            "training": {"steps": 10, "micro_batch_size": 2, "global_batch_size": 8},
            "data": {"train": [{"prefix": str(tmp_path / "text")}], "split": [1, 0, 0]},
            "evaluation": {"every_steps": 0},
        }
    )


def test_opening_names_what_people_ask_first(config: RunConfig, tmp_path: Path) -> None:
    plan = plan_batch(config, 2)
    data = build_data(config, plan, 0)
    lines = list(opening_lines(config, plan, Topology(data=2), data, "cpu"))
    # 10 steps x 8 samples x 40 tokens of 800 tokens.
    assert lines == [
        "model    decoder, 34,944 parameters",
        "layout   2 ranks = data 2, ZeRO 1, bf16 on cpu",
        "batch    8 samples = 320 tokens a step: 2 x accumulation 2 x data 2",
        f"train    {tmp_path}/text: 800 tokens in 2 documents, read 4.00 times in 10 steps",
        f"folder   {tmp_path}/runs/here",
    ]


def test_layout_names_axes_of_more_than_one_rank(config: RunConfig) -> None:
    assert describe_layout(config, Topology()) == "1 rank, ZeRO 1"
    layout = Topology(tensor=2, pipeline=4, data=3)
    text = describe_layout(config, layout)
    assert text == "24 ranks = tensor 2 x pipeline (1f1b) 4 x data 3, ZeRO 1"


def test_closing_says_where_it_lies_and_what_is_next(config: RunConfig) -> None:
    lines = closing_lines(config)
    assert lines[0].startswith(f"done     {config.run_directory}: checkpoints/")
    assert any(f"roots generate {config.run_directory} --prompt" in line for line in lines)
