"""`roots evaluate --tasks`: the tasks of lm_eval, and of files of one's own, on a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from roots.device import Device
    from roots.evaluation.harness.evaluate import Asked, TaskRequest, TaskResults, TaskScores
    from roots.parallel.mesh import Mesh


TaskNames = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates these on Python 3.10 too
    typer.Option(metavar="NAMES", help="Instead, tasks of lm_eval or of ROOTS, with commas."),
]
TaskFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of task files of one's own."),
]
TaskData = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="TASK=FILE", help="Data of a task; TASK:SPLIT=FILE: of a split of it."),
]
Limit = Annotated[int, typer.Option(min=0, help="Questions of every task; 0: all.")]
FewShot = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Solved examples before every question; default: as the task says."),
]
LogSamples = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Where what was asked and answered goes: FILE.jsonl, or a folder."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the tokenizer's chat template.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch tasks' data from the Hugging Face hub.")
]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The options of the command that concern tasks, by its names of them."""

    checkpoint: str
    tasks: str
    task_folder: Path | None
    task_data: Sequence[str] | None
    limit: int
    few_shot: int | None
    log_samples: Path | None
    chat: bool
    download: bool
    tokenizer: str | None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> TaskOptions:
        """Those among all of the command."""
        return cls(**{each.name: parameters[each.name] for each in fields(cls)})


def evaluate_on_tasks(options: TaskOptions, as_json: bool) -> None:
    """Print the scores of every task; write what was asked and answered, where that is wanted."""
    from contextlib import ExitStack
    from functools import partial

    from rich.console import Console

    from roots.checkpoint import resolve_checkpoint
    from roots.cli.progress import shown
    from roots.cli.trained.processes import on_processes, told_once
    from roots.evaluation.harness.evaluate import evaluate_tasks, load_tasks
    from roots.generation.layout import Degrees
    from roots.lock import Place, lock_beside, owned
    from roots.parallel.shared_errors import together

    with told_once():
        request = request_of(options)
        # Before the weights, which may take long to read.
        tasks = load_tasks(request)
        checkpoint = resolve_checkpoint(options.checkpoint)
    load = partial(_load, checkpoint, options)
    with on_processes(checkpoint, Degrees(), load) as (asked, mesh), ExitStack() as stack:
        speaks, samples = mesh.rank == 0, options.log_samples
        if speaks and samples is not None:
            fix = "wait for that process, or name another place"
            place = Place("--log-samples", "the samples go there", fix, value=str(samples))
            stack.enter_context(owned(lock_beside(samples), place))
        # To the stream of now: what lm_eval prints meanwhile is dropped.
        console = Console(file=sys.stderr, highlight=False)
        report = stack.enter_context(shown("evaluating", console)) if speaks else None
        results = together(
            mesh.world, lambda: evaluate_tasks(asked, tasks, request, progress=report)
        )
        if speaks and samples is not None:
            write_samples(results.samples, samples)
    if not speaks:
        return
    if as_json:
        document = {"checkpoint": str(checkpoint), "tasks": _as_document(results)}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    typer.echo(f"checkpoint  {checkpoint}")
    for line in table_of(results.scores):
        typer.echo(line)


def _load(checkpoint: Path, options: TaskOptions, device: Device, mesh: Mesh) -> Asked:
    """The model on this process' part of a layout, its tokenizer and its chat template."""
    from roots.evaluation.harness.evaluate import Asked
    from roots.evaluation.harness.text_model import text_model_of
    from roots.generation.chat import template_of
    from roots.generation.load import load_model, load_network, tokenizer_of

    loads = load_network if mesh.pipeline.size > 1 else load_model
    model = loads(checkpoint, device, mesh)
    words = tokenizer_of(model, options.tokenizer)
    chat = template_of(model, options.tokenizer) if options.chat else None
    return Asked(text_model_of(model, words, mesh), words, str(checkpoint), chat)


def request_of(options: TaskOptions) -> TaskRequest:
    """What the options ask for. Raises RootsError with all that is wrong with them."""
    from roots.cli.shipped import EVALUATION, shipped_folder
    from roots.errors import RootsError, problem
    from roots.evaluation.harness.evaluate import TaskRequest

    names = [name for part in options.tasks.split(",") if (name := part.strip())]
    lines = []
    if not names:
        lines.append(problem("--tasks", options.tasks, "names no task", "name some: A,B"))
    if options.task_folder is not None and not options.task_folder.is_dir():
        fix = "give the folder of the task files"
        lines.append(problem("--task-folder", str(options.task_folder), "is no folder", fix))
    data: dict[str, dict[str, Path]] = {}
    for text in options.task_data or ():
        task, equals, path = text.partition("=")
        name, _, split = task.partition(":")
        if not (name and equals and path):
            rule = "must be TASK=FILE, or TASK:SPLIT=FILE"
            lines.append(problem("--task-data", text, rule, "write it so"))
        data.setdefault(name, {})[split] = Path(path)
    if lines:
        raise RootsError(*lines)
    own = [shipped_folder() / "configs" / EVALUATION]
    return TaskRequest(
        names=list(dict.fromkeys(names)),
        folders=[*own, *([] if options.task_folder is None else [options.task_folder])],
        data=data,
        limit=options.limit or None,
        few_shot=options.few_shot,
        download=options.download,
        samples=options.log_samples is not None,
    )


def table_of(scores: Sequence[TaskScores]) -> list[str]:
    """The lines of a table: a measure each, the task's facts in its first."""
    rows = [("task", "documents", "few-shot", "measure", "value", "+-")]
    for each in scores:
        shots = "" if each.few_shot is None else str(each.few_shot)
        facts = (each.task, str(each.documents), shots)
        for measure in each.measures:
            error = measure.standard_error
            spread = "" if error is None else f"{error:.4g}"
            value = f"{measure.value:.4f}" if measure.value < 1e6 else f"{measure.value:.4e}"
            rows.append((*facts, measure.label, value, spread))
            facts = ("", "", "")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (0, 3)
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def write_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], to: Path) -> None:
    """A line of JSON a question: into the file `to` if it is called .jsonl, else a file a task."""
    from roots.files import write_atomically

    lines = {
        task: [json.dumps({"task": task, **each}, default=str) for each in some]
        for task, some in samples.items()
    }
    if to.suffix == ".jsonl":
        write_atomically(to, "".join(f"{line}\n" for some in lines.values() for line in some))
        return
    to.mkdir(parents=True, exist_ok=True)
    for task, some in lines.items():
        write_atomically(to / f"{task}.jsonl", "".join(f"{line}\n" for line in some))


def _as_document(results: TaskResults) -> dict[str, Any]:
    from roots.evaluation.likelihood import finite

    document = {}
    for scores in results.scores:
        tree = asdict(scores)
        for measure in tree["measures"]:
            measure["value"] = finite(measure["value"])
        document[tree.pop("task")] = tree
    return document
