"""Finding tasks by name: those of ROOTS and of a folder of one's own, then lm_eval's.

A task file that is wrong, or whose data are not on this machine, is told in a line before anything
is evaluated.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml
from jinja2 import TemplateError
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from roots.errors import RootsError, problem

# A split of a task's data, and the file that holds it.
Files = Mapping[str, Path]
# How `datasets` calls what reads files of one's own, by their endings.
READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_SPLITS = ("test", "validation", "training")
# What a task file or its data can be wrong in: to read, to import, and what its templates name.
_WRONG = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SyntaxError,
    IndexError,
    # Of `datasets`, for a file without a line.
    StopIteration,
    AssertionError,
    yaml.YAMLError,
    TemplateError,
    datasets.exceptions.DatasetsError,
)


class Tasks:
    """What lm_eval evaluates: tasks by name, and the groups that were asked for."""

    def __init__(self, found: Sequence[Task | Group]) -> None:
        self.tasks: dict[str, Task] = {}
        self.groups: dict[str, Group] = {}
        for each in found:
            if isinstance(each, Group):
                self.groups[each.name] = each
                self.groups |= {group.name: group for group in each.get_all_groups()}
                self.tasks |= {task.task_name: task for task in each.get_all_tasks()}
            else:
                self.tasks[each.task_name] = each

    def as_tree(self) -> dict[str, Any]:
        """As lm_eval takes them."""
        names = {group.name: group.child_names for group in self.groups.values()}
        return {"tasks": self.tasks, "groups": self.groups, "group_map": names}


def find_tasks(
    names: Sequence[str],
    folders: Sequence[Path],
    data: Mapping[str, Files],
    *,
    download: bool = False,
) -> Tasks:
    """The tasks called `names`, of the `folders` (the later go first), or of lm_eval.

    data:     files of their data, by task, for those that have none or are to have other data
    download: data may have been fetched from the hub
    Raises RootsError with every name that is unknown, and for what is wrong with a task.
    """
    index = _index_of(names, folders)
    lines = [_unknown(name, index, folders) for name in names if name not in index.all_tasks]
    lines += [
        problem("--task-data", name, "is none of the tasks that are evaluated", "leave it out")
        for name in data
        if name not in names
    ]
    lines += [
        line for name in names if name in index.all_tasks for line in _data(name, index, data)
    ]
    if lines:
        raise RootsError(*lines)
    return Tasks([each for name in names for each in _load(name, index, data.get(name), download)])


def _index_of(names: Sequence[str], folders: Sequence[Path]) -> TaskManager:
    """An index that has all `names`, if any has: lm_eval's own tasks take seconds to list."""
    paths: list[str | Path] = list(folders)
    index = TaskManager(include_path=paths, include_defaults=False)
    if all(name in index.all_tasks for name in names):
        return index
    return TaskManager(include_path=paths)


def _unknown(name: str, index: TaskManager, folders: Sequence[Path]) -> str:
    broken = next(_unreadable(folders), None)
    if broken is not None:
        return broken
    near = difflib.get_close_matches(name, index.all_tasks, n=3, cutoff=0.5)
    rule = "is no task of ROOTS, of --task-folder or of lm_eval"
    own = [path.stem for path in sorted(folders[0].glob("*.yaml"))] if folders else []
    fix = f"did you mean {', '.join(near)}?" if near else f"ROOTS has {', '.join(own)}"
    return problem("--tasks", name, rule, fix)


def _unreadable(folders: Sequence[Path]) -> Iterator[str]:
    """Files that are no YAML, which lm_eval leaves out without a word."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            rule = f"is no YAML ({' '.join(str(error).split())})"
            yield problem(str(path), None, rule, "correct it, or move it out of the folder")


def _data(name: str, index: TaskManager, data: Mapping[str, Files]) -> Iterator[str]:
    """What is wrong with the files of a task's data, as far as its own file says."""
    if name in data:
        for path in data[name].values():
            if path.suffix not in READERS:
                rule = f"must end in one of {', '.join(READERS)}"
                yield problem(f"--task-data {name}", str(path), rule, "give another file")
            elif not path.is_file():
                yield problem(f"--task-data {name}", str(path), "is no file", "correct the path")
            elif path.stat().st_size == 0:
                fix = "give a file with data"
                yield problem(f"--task-data {name}", str(path), "is empty", fix)
        return
    config = index.task_index[name].cfg or {}
    if config.get("dataset_path") not in set(READERS.values()):
        return
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if not files:
        rule = "has no data of its own"
        yield problem("task", name, rule, f"give --task-data {name}=FILE")
    for path in _paths(files):
        if (
            not any(sign in path for sign in "*?[")
            and "://" not in path
            and not Path(path).exists()
        ):
            rule = "is not there, and holds the task's data"
            fix = f"start from its folder, or give --task-data {name}=FILE"
            yield problem(f"task {name} data_files", path, rule, fix)


def _paths(files: Any) -> list[str]:
    """All paths among data_files: a path, a list of them, or either by split."""
    if isinstance(files, Mapping):
        return [path for each in files.values() for path in _paths(each)]
    return (
        [str(each) for each in files] if isinstance(files, list) else [str(files)] if files else []
    )


def _load(name: str, index: TaskManager, files: Files | None, download: bool) -> list[Task | Group]:
    """The task, or the tasks of the tag, called `name`. Raises RootsError in one line."""
    try:
        if files is None:
            found = index.load([name])
            tagged = name not in found["tasks"] and name not in found.get("groups", {})
            if tagged:
                return list(found["tasks"].values())
            return [found.get("groups", {}).get(name) or found["tasks"][name]]
        return [_with_data(name, index, files)]
    except _WRONG as error:
        raise RootsError(_reason(name, index, error, download)) from error


def _with_data(name: str, index: TaskManager, files: Files) -> Task:
    """The task with data of these files and of no others."""
    entry = index.task_index[name]
    config = entry.cfg or {}
    tested = next((split for split in _SPLITS if config.get(f"{split}_split")), "test")
    by_split = {tested if split == "" else split: path for split, path in files.items()}
    readers = {READERS[path.suffix] for path in files.values()}
    arguments: dict[str, Any] = {
        "data_files": {split: str(path.resolve()) for split, path in by_split.items()}
    }
    if any(path.suffix == ".tsv" for path in files.values()):
        arguments["sep"] = "\t"
    changes = {
        "include": str(Path(entry.yaml_path).resolve()),
        "dataset_path": readers.pop(),
        "dataset_name": None,
        "dataset_kwargs": arguments,
        **{f"{split}_split": split if split in by_split else None for split in _SPLITS},
        # lm_eval keeps a question out of its own examples only where these two are one.
        "fewshot_split": "training" if "training" in by_split else tested,
        "test_split": "test" if "test" in by_split else tested,
    }
    with tempfile.TemporaryDirectory() as folder:
        # The documented way to change a task: a file that includes another one.
        path = Path(folder) / "task.yaml"
        path.write_text(yaml.safe_dump(changes), encoding="utf-8")
        return index.load([str(path)])["tasks"][name]


def _reason(name: str, index: TaskManager, error: Exception, download: bool) -> str:
    """The line of an error that a task's loading raised."""
    entry = index.task_index[name]
    config = entry.cfg or {}
    source = config.get("dataset_path")
    if isinstance(error, OSError) and source not in {None, *READERS.values()} and not download:
        rule = (
            f"needs dataset_path {source!r} of the Hugging Face hub, which is not on this machine"
        )
        fix = f"give --download, or its data by --task-data {name}=FILE"
        return problem("task", name, rule, fix)
    reason = " ".join(str(error).split()) or type(error).__name__
    fix = "correct the file, or the data that it names"
    return problem(f"task {name}", None, f"cannot be loaded ({reason}; {entry.yaml_path})", fix)
