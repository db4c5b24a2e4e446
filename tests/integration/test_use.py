"""From text to a model that writes: preprocess, train on TP2 x PP2, then use it on one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roots.cli.main import main
from roots.config import RunConfig
from roots.training.callbacks.metrics import read_evaluations
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config
from tests.integration.runs import run

TEXT = "the quick brown fox. "
BYTE_VOCABULARY = 257


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run on four ranks, with an evaluation of the last step over all its text."""
    folder = tmp_path_factory.mktemp("use")
    (folder / "text.txt").write_text(TEXT * 100, encoding="utf-8")
    prefix = folder / "tokens"
    words = ["preprocess", "--tokenizer", "bytes", "--out", prefix, folder / "text.txt"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    config = small_config(
        prefix,
        folder,
        parallel={"tensor": 2, "pipeline": 2, "zero_stage": 1},
        model={
            "vocab_size": BYTE_VOCABULARY,
            "sequence_length": 32,
            "hidden_size": 64,
            "num_layers": 2,
        },
        training={"steps": 150, "micro_batch_size": 8, "global_batch_size": 16},
        optimizer={"learning_rate": 3e-3},
        schedule={"warmup_steps": 10, "min_learning_rate": 1e-4},
        evaluation={"every_steps": 150, "steps": 4},
    )
    run_distributed(run, 4, config)
    return config


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_generate_continues_what_was_learned(
    trained: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "the quick ", "--prompt", "fox. the"]
    # Without data.tokenizer in the config, the checkpoint knows from its data whose ids they are.
    options = ["--max-new-tokens", "5", "--greedy", "--json"]
    out = call(capsys, "generate", trained.run_directory, *prompts, *options)
    written = [continuation["text"] for continuation in json.loads(out)["continuations"]]
    assert written == ["brown", " quic"]


def test_evaluate_agrees_with_the_loss_of_the_training(
    trained: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other windows of the same periodic text, so the losses are close and not equal."""
    out = call(
        capsys, "evaluate", trained.run_directory, "--data", trained.data.valid[0].prefix, "--json"
    )
    result = json.loads(out)
    last = read_evaluations(trained.run_directory / "evaluations.jsonl")[-1]
    assert last.step == trained.training.steps
    assert result["loss"] == pytest.approx(last.loss, rel=0.2)
    assert result["loss"] < 1.0
