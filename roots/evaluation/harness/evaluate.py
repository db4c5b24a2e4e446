"""A checkpoint on tasks of lm_eval: the scores of every task, and what was asked and answered."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roots.device import set_environment
from roots.errors import RootsError, problem
from roots.generation.chat import ChatTemplate
from roots.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from roots.evaluation.harness.task_files import Files, Tasks
    from roots.evaluation.harness.text_model import TextModel

# Enough for standard errors of two digits; what needs none of it has its formula.
_BOOTSTRAP = 1000
_SEED = 1234


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What is evaluated.

    names:    of tasks, groups or tags
    folders:  of task files, beside those of lm_eval; the later go first
    data:     files of data, by task and split ("": the one that the task is tested on)
    limit:    documents of every task, the first ones; None: all
    few_shot: solved examples before every question; None: as the task says
    download: data that are not on this machine may be fetched from the hub
    samples:  keep what was asked and answered
    """

    names: Sequence[str]
    folders: Sequence[Path] = ()
    data: Mapping[str, Files] = field(default_factory=dict)
    limit: int | None = None
    few_shot: int | None = None
    download: bool = False
    samples: bool = False


@dataclass(frozen=True)
class Measure:
    """One score of a task; `filter` is what made of texts what was scored, `none` mostly."""

    name: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool | None

    @property
    def label(self) -> str:
        """The name, with the filter if one was applied."""
        return self.name if self.filter == "none" else f"{self.name}, {self.filter}"


@dataclass(frozen=True)
class TaskScores:
    """The scores of a task, or of a group over its tasks (which has no few_shot of its own)."""

    task: str
    version: str
    few_shot: int | None
    documents: int
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class TaskResults:
    """The scores of all tasks, and the samples of each where they were asked for."""

    scores: tuple[TaskScores, ...]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Asked:
    """Who is asked: a model with its tokenizer, under the name of its checkpoint.

    chat: questions are put as messages of a chat, by this template; None: as plain text
    """

    texts: TextModel
    words: Tokenizer
    name: str
    chat: ChatTemplate | None = None


def load_tasks(request: TaskRequest) -> Tasks:
    """The tasks of a request with their data. Raises RootsError, also where lm_eval is missing."""
    _prepare(request.download)
    try:
        from roots.evaluation.harness.task_files import find_tasks
    except ModuleNotFoundError as error:
        rule = f"need the package lm_eval, which cannot be imported here ({error})"
        raise RootsError(problem("tasks", None, rule, "run `pip install .[eval]`")) from error
    with _quiet():
        tasks = find_tasks(request.names, request.folders, request.data, download=request.download)
    for task in tasks.tasks.values():
        fixed = task.get_config("num_fewshot")
        # As from lm_eval: a task that says 0 is one that examples would spoil.
        if fixed is None or (request.few_shot is not None and fixed != 0):
            task.set_config(key="num_fewshot", value=request.few_shot or 0)
    return tasks


def evaluate_tasks(
    asked: Asked,
    tasks: Tasks,
    request: TaskRequest,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResults:
    """Score a model on `tasks`; `progress` hears of requests done, and all of the same kind.

    All ranks that share the model call alike, and have the same results. Raises RootsError for data
    without what a task names, and for tasks that need what ROOTS lacks.
    """
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    from roots.evaluation.harness.native_model import NativeModel, writing_of

    for task in tasks.tasks.values():
        # Its examples go on from those of the evaluation before, if there was one.
        task.set_fewshot_seed(seed=_SEED)
        # Before hours of other tasks.
        if task.OUTPUT_TYPE == "generate_until":
            asked.texts.room(writing_of(task.config.generation_kwargs or {}, task.task_name))
    chat = asked.chat
    model = NativeModel(asked.texts, asked.words, name=asked.name, template=chat, progress=progress)
    try:
        with _quiet():
            found = evaluate(
                model,
                tasks.as_tree(),
                limit=request.limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=request.samples,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=chat is not None,
            )
    except (TemplateError, ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())
        rule = f"cannot be asked ({reason})"
        fix = "give data with all that their files name, or other tasks"
        raise RootsError(problem("tasks", ",".join(request.names), rule, fix)) from error
    return TaskResults(tuple(_scores(found)), found.get("samples") or {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it the bars and lines are dropped that lm_eval prints, whoever reads its results.

    What ROOTS logs goes to streams of its own, and what is wrong is raised.
    """
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _prepare(download: bool) -> None:
    """Set what lm_eval and its libraries take from the environment, before they are imported."""
    variables = {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        # Its bootstrap would fork this process, with all threads and devices that it has.
        "DISABLE_MULTIPROC": "1",
    }
    if not download:
        variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    set_environment(variables)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _scores(found: Mapping[str, Any]) -> list[TaskScores]:
    better = found["higher_is_better"]
    return [
        TaskScores(
            task=task,
            version=str(found["versions"].get(task)),
            few_shot=found["n-shot"].get(task),
            documents=_documents(task, found),
            measures=tuple(_measures(values, better.get(task) or {})),
        )
        for task, values in found["results"].items()
    ]


def _documents(task: str, found: Mapping[str, Any]) -> int:
    """How many documents were asked of a task, or of all tasks of a group."""
    counts = found["n-samples"]
    if task in counts:
        return int(counts[task]["effective"])
    return sum(_documents(each, found) for each in found["group_subtasks"].get(task, ()))


def _measures(values: Mapping[str, Any], better: Mapping[str, bool]) -> list[Measure]:
    measures = []
    for key, value in values.items():
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{name}_stderr,{chosen}")
        known = isinstance(error, (int, float)) and math.isfinite(error)
        measures.append(
            Measure(name, chosen, float(value), float(error) if known else None, better.get(name))
        )
    return measures
