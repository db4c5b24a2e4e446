"""Rules of evaluations on tasks during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig

# Fields that mean something with tasks alone, and their defaults.
_OF_TASKS = {"tasks_every_steps": 0, "task_folder": None, "tasks_limit": 0, "few_shot": None}


def tasks_come_with_evaluations(config: RunConfig) -> Iterator[str]:
    """Scores on tasks stand beside a held-out loss, in one record."""
    section = config.evaluation
    every, tasks_every = section.every_steps, section.tasks_every_steps
    if not section.tasks:
        for name, default in _OF_TASKS.items():
            if getattr(section, name) != default:
                rule = "has no effect without evaluation.tasks"
                fix = "name some tasks, or leave it out"
                yield problem(f"evaluation.{name}", getattr(section, name), rule, fix)
    elif not every:
        rule = "are never asked with evaluation.every_steps=0"
        names = list(section.tasks)
        yield problem(
            "evaluation.tasks", names, rule, "set evaluation.every_steps, or leave it out"
        )
    elif tasks_every % every:
        rule = f"must be a multiple of evaluation.every_steps={every}"
        fix = f"set it to {-(-tasks_every // every) * every}, or to 0"
        yield problem("evaluation.tasks_every_steps", tasks_every, rule, fix)


def tasks_can_be_asked(config: RunConfig) -> Iterator[str]:
    """Tasks are texts, and a model that is asked some reads and writes."""
    names, parallel = list(config.evaluation.tasks), config.parallel
    if not names:
        return
    architecture = config.model.architecture
    if config.data.tokenizer is None:
        rule = "are texts, and data.tokenizer=None names nothing to read them by"
        yield problem("evaluation.tasks", names, rule, "set data.tokenizer")
    if architecture == "encoder":
        rule = "are asked what follows, and an encoder predicts nothing that follows"
        yield problem("evaluation.tasks", names, rule, "leave it out")
    if parallel.pipeline > 1 and architecture != "decoder":
        rule = f"are asked of decoders alone with parallel.pipeline={parallel.pipeline}"
        yield problem("evaluation.tasks", names, rule, "set parallel.pipeline=1, or leave it out")
    if parallel.pipeline > 1 and parallel.pipeline_schedule != "1f1b":
        rule = f"cannot be asked with parallel.pipeline_schedule={parallel.pipeline_schedule}"
        yield problem("evaluation.tasks", names, rule, "set it to 1f1b, or leave the tasks out")


EVALUATION_RULES = (tasks_come_with_evaluations, tasks_can_be_asked)
