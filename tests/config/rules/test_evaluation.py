"""Rules of evaluations on tasks during training, each with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.config import load_config, parse_config
from roots.errors import RootsError

TASKS = {"tasks": ["cloze"], "every_steps": 10}
DATA = {"tokenizer": "bytes"}


def lines_of(tree: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        parse_config(tree)
    return caught.value.lines


@pytest.mark.parametrize(
    "tree, line",
    [
        (
            {"evaluation": {"tasks_limit": 5}},
            "evaluation.tasks_limit=5: has no effect without evaluation.tasks; "
            "name some tasks, or leave it out",
        ),
        (
            {"evaluation": {**TASKS, "every_steps": 0}, "data": DATA},
            "evaluation.tasks=['cloze']: are never asked with evaluation.every_steps=0; "
            "set evaluation.every_steps, or leave it out",
        ),
        (
            {"evaluation": {**TASKS, "tasks_every_steps": 25}, "data": DATA},
            "evaluation.tasks_every_steps=25: must be a multiple of evaluation.every_steps=10; "
            "set it to 30, or to 0",
        ),
        (
            {"checkpoint": {"keep_best_by": "cloze/acc"}},
            "checkpoint.keep_best_by='cloze/acc': has no effect with checkpoint.keep_best=0; "
            "set that to 1 or more",
        ),
        (
            {
                "checkpoint": {"keep_best": 1, "keep_best_by": "cloze"},
                "evaluation": TASKS,
                "data": DATA,
            },
            "checkpoint.keep_best_by='cloze': must be loss, or TASK/MEASURE of one of "
            "evaluation.tasks; name one, as cloze/acc, or leave it out",
        ),
        (
            {"evaluation": TASKS},
            "evaluation.tasks=['cloze']: are texts, and data.tokenizer=None names nothing to read "
            "them by; set data.tokenizer",
        ),
        (
            {"evaluation": TASKS, "data": DATA, "model": {"architecture": "encoder"}},
            "evaluation.tasks=['cloze']: are asked what follows, and an encoder predicts nothing "
            "that follows; leave it out",
        ),
        (
            {
                "evaluation": TASKS,
                "data": DATA,
                "parallel": {"pipeline": 2},
                "model": {"architecture": "encoder_decoder", "num_layers": 2},
            },
            "evaluation.tasks=['cloze']: are asked of decoders alone with parallel.pipeline=2; "
            "set parallel.pipeline=1, or leave it out",
        ),
        (
            {
                "evaluation": TASKS,
                "data": DATA,
                "parallel": {"pipeline": 2, "pipeline_schedule": "dualpipev"},
            },
            "evaluation.tasks=['cloze']: cannot be asked with "
            "parallel.pipeline_schedule=dualpipev; set it to 1f1b, or leave the tasks out",
        ),
    ],
)
def test_tasks_that_cannot_be_asked_are_told(tree: dict[str, Any], line: str) -> None:
    assert line in lines_of(tree)


@pytest.mark.parametrize("text", ["a,b", "[a, b]", '["a", "b"]'])
def test_tasks_are_a_list_in_an_override_too(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {tokenizer: bytes}\n", encoding="utf-8")
    assert load_config(path, [f"evaluation.tasks={text}"]).evaluation.tasks == ("a", "b")
    assert load_config(path, ["evaluation.tasks=cloze"]).evaluation.tasks == ("cloze",)


def test_tasks_of_a_training_are_taken() -> None:
    evaluation = {**TASKS, "tasks_every_steps": 20, "tasks_limit": 3, "few_shot": 0}
    found = parse_config({"evaluation": evaluation, "data": DATA}).evaluation
    assert (found.tasks, found.tasks_every_steps, found.few_shot) == (("cloze",), 20, 0)
