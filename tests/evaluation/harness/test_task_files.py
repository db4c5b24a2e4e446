"""Tasks are found by name, with their data, and what is wrong with them is told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.evaluation.harness.evaluate import TaskRequest, load_tasks
from tests.helpers.sources import ROOT

pytest.importorskip("lm_eval", reason="loads tasks by lm_eval, which is not installed")

TASKS = ROOT / "configs" / "evaluation"
EXAMPLES = TASKS / "examples"
OWN = """task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{last}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def lines_of(request: TaskRequest) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        load_tasks(request)
    return caught.value.lines


def own_folder(folder: Path, data: str | None = None) -> Path:
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"text": "a b", "last": " c"}\n', encoding="utf-8")
    text = OWN.format(data=data or folder / "data.jsonl")
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name, data",
    [
        ("corpus_perplexity", "texts"),
        ("cloze", "texts"),
        ("multiple_choice", "questions"),
        ("question_answering", "answers"),
        ("translation", "pairs"),
        ("translation_by_examples", "pairs"),
    ],
)
def test_every_task_file_takes_its_example(name: str, data: str) -> None:
    path = EXAMPLES / f"{data}.jsonl"
    request = TaskRequest(names=[name], folders=[TASKS], data={name: {"": path}}, few_shot=1)
    task = load_tasks(request).tasks[name]
    assert len(task.test_docs()) == len(path.read_text(encoding="utf-8").splitlines())
    assert task.get_config("num_fewshot") == 1
    text = task.fewshot_context(task.test_docs()[0], 1)
    assert isinstance(text, str)
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_tasks_of_ones_own_have_their_data(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "tasks")
    tasks = load_tasks(TaskRequest(names=["own"], folders=[TASKS, folder]))
    assert tasks.tasks["own"].test_docs()[0] == {"text": "a b", "last": " c"}
    other = tmp_path / "other.csv"
    other.write_text("text,last\nx y, z\n", encoding="utf-8")
    data = {"own": {"": other, "training": other}}
    task = load_tasks(TaskRequest(names=["own"], folders=[folder], data=data)).tasks["own"]
    assert task.test_docs()[0] == {"text": "x y", "last": " z"}
    assert task.has_training_docs()


def test_unknown_tasks_are_told_with_those_that_are_near() -> None:
    """Together with what else is wrong."""
    data = {"elsewhere": {"": EXAMPLES / "texts.jsonl"}}
    lines = lines_of(TaskRequest(names=["helaswag", "cloze"], folders=[TASKS], data=data))
    assert lines[0].startswith(
        "--tasks='helaswag': is no task of ROOTS, of --task-folder or of lm_eval; "
        "did you mean hellaswag, "
    )
    assert lines[1:] == (
        "--task-data='elsewhere': is none of the tasks that are evaluated; leave it out",
        "task='cloze': has no data of its own; give --task-data cloze=FILE",
    )


def test_tasks_without_their_data_are_told(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "tasks", data="nowhere.jsonl")
    assert lines_of(TaskRequest(names=["own"], folders=[folder])) == (
        "task own data_files='nowhere.jsonl': is not there, and holds the task's data; "
        "start from its folder, or give --task-data own=FILE",
    )
    data = {"own": {"": tmp_path / "x.doc", "training": tmp_path / "gone.jsonl"}}
    assert lines_of(TaskRequest(names=["own"], folders=[folder], data=data)) == (
        f"--task-data own={str(tmp_path / 'x.doc')!r}: must end in one of .json, .jsonl, .csv, "
        ".tsv, .parquet, .txt; give another file",
        f"--task-data own={str(tmp_path / 'gone.jsonl')!r}: is no file; correct the path",
    )
    text = (folder / "own.yaml").read_text(encoding="utf-8")
    text = text.replace("dataset_path: json", "dataset_path: nobody/nothing")
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    assert lines_of(TaskRequest(names=["own"], folders=[folder])) == (
        "task='own': needs dataset_path 'nobody/nothing' of the Hugging Face hub, which is not on "
        "this machine; give --download, or its data by --task-data own=FILE",
    )


def test_files_that_are_wrong_are_told(tmp_path: Path) -> None:
    """Also one that is no YAML, which lm_eval passes over in silence."""
    folder = own_folder(tmp_path / "tasks")
    path = folder / "own.yaml"
    data = folder / "data.jsonl"
    data.write_text('{"text": "a b"}\n', encoding="utf-8")
    (line,) = lines_of(TaskRequest(names=["own"], folders=[folder]))
    assert line == (
        f"task own: cannot be loaded ('last' is undefined; {path}); "
        "correct the file, or the data that it names"
    )
    path.write_text("task: [own\n", encoding="utf-8")
    (line,) = lines_of(TaskRequest(names=["own"], folders=[folder]))
    assert line.startswith(f"{path}: is no YAML (while parsing a flow sequence ")
    data.write_text("", encoding="utf-8")
    path.write_text(OWN.format(data=data), encoding="utf-8")
    (line,) = lines_of(TaskRequest(names=["own"], folders=[folder]))
    assert line.startswith("task own: cannot be loaded (")


@pytest.mark.parametrize("split", ["", "validation"])
def test_no_question_is_among_its_own_examples(tmp_path: Path, split: str) -> None:
    """Of three questions two are left to show; the third is the one that is asked."""
    path = tmp_path / "questions.jsonl"
    questions = [{"question": f"q{n}", "choices": ["a", "b"], "answer": 0} for n in range(3)]
    path.write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    data = {"multiple_choice": {split: path}}
    if split:
        own = tmp_path / "tasks"
        own.mkdir()
        text = (TASKS / "multiple_choice.yaml").read_text(encoding="utf-8")
        text = text.replace("test_split: test", "validation_split: validation")
        (own / "own.yaml").write_text(text.replace("task: multiple_choice", "task: own"), "utf-8")
        data = {"own": {split: path}}
    (name,) = data
    folders = [tmp_path / "tasks"] if split else [TASKS]
    request = TaskRequest(names=[name], folders=folders, data=data, few_shot=2)
    task = load_tasks(request).tasks[name]
    for number in range(3):
        text = task.fewshot_context(questions[number], 2)
        assert isinstance(text, str)
        assert sorted(text.count(f"q{n}") for n in range(3)) == [1, 1, 1]
        assert text.rstrip().endswith(f"q{number}\nAnswer:")
