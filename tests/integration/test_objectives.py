"""Every objective trains through the engine; pairs on any layout and after a stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.data.indexed import IndexedWriter
from roots.errors import ExitCode
from roots.training.callbacks.metrics import read_evaluations, read_metrics
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import VOCAB_SIZE, small_config, write_dataset
from tests.integration.runs import run


def losses(config: RunConfig) -> list[float]:
    return [record.loss for record in read_metrics(config.run_directory / "metrics.jsonl")]


def write_pairs(prefix: Path, count: int = 40) -> Path:
    """Targets that count up from their source, in different lengths."""
    for side in ("source", "target"):
        generator = np.random.default_rng(7)
        with IndexedWriter(f"{prefix}.{side}", VOCAB_SIZE) as writer:
            for _ in range(count):
                length, first = (int(n) for n in generator.integers((2, 1), (12, 50)))
                numbers = first + np.arange(length) * (side == "target")
                writer.add(np.append(numbers, 0))
            writer.finish(tokenizer="test", end_of_document=0)
    return prefix


def test_pairs_on_two_ranks_with_a_stop_have_the_losses_of_one_run(tmp_path: Path) -> None:
    """Padding and order are those of the global batch, whoever reads which part of it."""
    prefix = write_pairs(tmp_path / "pairs")

    def config(name: str) -> RunConfig:
        return small_config(
            prefix,
            tmp_path,
            run={"name": name},
            model={"architecture": "encoder_decoder", "dropout": 0.1, "attention_dropout": 0.1},
            data={"objective": "pairs", "pad_multiple": 4, "group_batches": 2},
        )

    assert run_distributed(run, 1, config("whole")) == [ExitCode.DONE]
    stopped = run_distributed(run, 2, config("parts"), 2)
    assert set(stopped) == {ExitCode.INTERRUPTED}
    assert set(run_distributed(run, 2, config("parts"))) == {ExitCode.DONE}
    whole = losses(config("whole"))
    assert len(whole) == 4
    check_tokens_per_second(config("whole"))
    assert losses(config("parts")) == pytest.approx(whole, rel=1e-5)


def check_tokens_per_second(config: RunConfig) -> None:
    """They count the targets as they were padded, which here is less than the model's length."""
    plan = plan_batch(config, 1)
    steps = build_data(config, plan, 0).train.iterate(0)
    lengths = [micro_batches[0].tokens_BT.shape[1] for micro_batches, _ in steps]
    assert max(lengths) < config.model.sequence_length
    records = read_metrics(config.run_directory / "metrics.jsonl")
    found = [record.tokens_per_second * record.step_seconds for record in records]
    assert found == pytest.approx([plan.global_batch_size * length for length in lengths])


@pytest.mark.parametrize(
    "architecture, objective", [("encoder_decoder", "span_corruption"), ("encoder", "masked")]
)
def test_objective_learns(tmp_path: Path, architecture: str, objective: str) -> None:
    """Documents that count up: what is hidden follows from what is not."""
    prefix = write_dataset(tmp_path / "data")
    model: dict[str, Any] = {"architecture": architecture, "vocab_size": VOCAB_SIZE + 4}
    config = small_config(
        prefix,
        tmp_path,
        model=model,
        training={"steps": 30, "global_batch_size": 4},
        data={"objective": objective},
        evaluation={"every_steps": 30, "steps": 2},
    )
    assert run_distributed(run, 1, config) == [ExitCode.DONE]
    assert losses(config)[0] == pytest.approx(math.log(VOCAB_SIZE), abs=1.0)
    first, last = read_evaluations(config.run_directory / "evaluations.jsonl")
    assert last.loss < first.loss - 0.1
