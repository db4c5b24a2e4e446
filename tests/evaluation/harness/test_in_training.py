"""Scores on tasks during training are those of the checkpoint of that step, on every layout."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from roots.checkpoint.manifest import read_manifest
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.indexed import IndexedWriter
from roots.device import Device, launch_environment
from roots.errors import RootsError
from roots.evaluation.harness.evaluate import Asked, TaskRequest, evaluate_tasks, load_tasks
from roots.evaluation.harness.in_training import TaskEvaluation
from roots.evaluation.harness.text_model import text_model_of
from roots.generation.load import load_model, tokenizer_of
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of
from roots.tokenizer.tokenizer import ByteTokenizer
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.metrics import read_evaluations
from roots.training.callbacks.peak import Peak
from roots.training.loop import train_loop
from tests.helpers.decoders import small_decoder
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config
from tests.helpers.sources import ROOT

pytest.importorskip("lm_eval", reason="asks tasks of lm_eval, which is not installed")

SHIPPED = ROOT / "configs" / "evaluation"
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2, sequence": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "ZeRO 3": {"zero_stage": 3},
    "context 2": {"context": 2},
}


def own_tasks(folder: Path) -> Path:
    folder.mkdir()
    for name, data in (("cloze", "texts"), ("multiple_choice", "questions")):
        path = SHIPPED / "examples" / f"{data}.jsonl"
        text = f"include: {SHIPPED / name}.yaml\ntask: own_{name}\n"
        text += f"dataset_kwargs: {{data_files: {{test: {path}}}}}\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ByteTokenizer()
    path = tmp_path_factory.mktemp("data") / "text"
    with IndexedWriter(path, words.vocab_size) as writer:
        for number in range(40):
            ids = words.encode(f"the bread of night {number} is sold in the morning")
            writer.add(np.array([*ids, words.end_of_document]))
        writer.finish(tokenizer=words.fingerprint, end_of_document=words.end_of_document)
    return path


def train(rank: int, world_size: int, config: RunConfig) -> None:
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    with ExitStack() as stack:
        # Measuring the processor would take longer than the run.
        peak = Peak(1e9, "given")
        stack.enter_context(patch("roots.training.assemble.device_peak", return_value=peak))
        train_loop(assemble(config, plan_batch(config, world_size), device, stack))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_checkpoint(prefix: Path, tmp_path: Path, layout: str) -> None:
    folder = own_tasks(tmp_path / "tasks")
    names = ["own_cloze", "own_multiple_choice"]
    config = small_config(
        prefix,
        tmp_path,
        model={"vocab_size": 257, "sequence_length": 64},
        parallel=LAYOUTS[layout],
        data={"tokenizer": "bytes"},
        evaluation={"every_steps": 2, "tasks": names, "task_folder": str(folder), "few_shot": 1},
        checkpoint={"keep_best": 1, "keep_best_by": "own_cloze/perplexity"},
    )
    run_distributed(train, 2, config)
    records = read_evaluations(config.run_directory / "evaluations.jsonl")
    assert [record.step for record in records] == [0, 2, 4]
    assert records[0].tasks != records[2].tasks
    model = load_model(config.run_directory, Device("cpu", 0))
    words = tokenizer_of(model, None)
    request = TaskRequest(names=names, folders=[folder], few_shot=1)
    asked = Asked(text_model_of(model, words), words, "x")
    found = evaluate_tasks(asked, load_tasks(request), request)
    expected = {
        f"{each.task}/{measure.label}": measure.value
        for each in found.scores
        for measure in each.measures
    }
    assert set(expected) == {
        "own_cloze/acc",
        "own_cloze/perplexity",
        "own_multiple_choice/acc",
        "own_multiple_choice/acc_norm",
    }
    assert records[2].tasks == pytest.approx(expected, rel=1e-4)
    name, cost = read_manifest(model.checkpoint).best
    assert name == "own_cloze/perplexity"
    assert cost == records[2].tasks[name]


def test_measures_that_judge_are_among_those_measured(prefix: Path, tmp_path: Path) -> None:
    """Higher is better of most, and lower of others; what is none is told with those that are."""
    folder = own_tasks(tmp_path / "tasks")

    def judged(by: str) -> tuple[str, float | None]:
        config = small_config(
            prefix,
            tmp_path,
            model={"vocab_size": 257, "sequence_length": 96},
            data={"tokenizer": "bytes"},
            evaluation={"every_steps": 2, "tasks": ["own_cloze"], "task_folder": str(folder)},
            checkpoint={"keep_best": 1, "keep_best_by": by},
        )
        tasks = TaskEvaluation(config, Mesh.single(), ByteTokenizer())
        decoder = small_decoder(config.model)
        named = [(shard_of(each, name), each) for name, each in decoder.named_parameters()]
        scores = tasks.scores(named)
        name, cost = tasks.cost(scores)
        assert cost is not None
        return name, cost / scores[name] if scores[name] else cost

    assert judged("own_cloze/perplexity") == ("own_cloze/perplexity", 1.0)
    assert judged("own_cloze/acc") in [("own_cloze/acc", -1.0), ("own_cloze/acc", 0.0)]
    with pytest.raises(RootsError) as caught:
        judged("own_cloze/f1")
    assert caught.value.lines == (
        "checkpoint.keep_best_by='own_cloze/f1': is none of what is measured "
        "(own_cloze/perplexity, own_cloze/acc); name one of these",
    )
