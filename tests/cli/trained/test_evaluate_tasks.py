"""`roots evaluate --tasks`: a table, JSON, samples; and lines for what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from tests.helpers.models import save_model
from tests.helpers.sources import ROOT

pytest.importorskip("lm_eval", reason="evaluates by lm_eval, which is not installed")

EXAMPLES = ROOT / "configs" / "evaluation" / "examples"
DATA = ("--task-data", f"cloze={EXAMPLES / 'texts.jsonl'}")
CHOICES = ("--task-data", f"multiple_choice={EXAMPLES / 'questions.jsonl'}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    model = {"vocab_size": 257, "sequence_length": 96}
    save_model(folder, model=model, data={"tokenizer": "bytes"})
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    out, error = capsys.readouterr()
    return int(ended.value.code or 0), out, error


def test_scores_are_a_table_a_line_a_measure(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("--tasks", "multiple_choice, cloze", *DATA, *CHOICES, "--few-shot", "1")
    code, out, _ = run(capsys, str(saved), *tasks, "--limit", "3")
    assert code == 0
    first, head, *rows = out.splitlines()
    assert first == f"checkpoint  {saved}"
    assert head.split() == ["task", "documents", "few-shot", "measure", "value", "+-"]
    assert rows[0].split()[:4] == ["multiple_choice", "3", "1", "acc"]
    assert [row.split()[0] for row in (rows[1], rows[3])] == ["acc_norm", "acc"]
    assert rows[2].split()[:4] == ["cloze", "3", "1", "perplexity"]


def test_json_and_samples_hold_the_same_scores(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "samples.jsonl"
    tasks = ("--tasks", "multiple_choice", *CHOICES, "--json")
    code, out, _ = run(capsys, str(saved), *tasks, "--log-samples", str(to))
    assert code == 0
    tree = json.loads(out)
    found = tree["tasks"]["multiple_choice"]
    assert (tree["checkpoint"], found["documents"], found["few_shot"]) == (str(saved), 4, 0)
    measures = {each["name"]: each for each in found["measures"]}
    samples: list[dict[str, Any]] = [json.loads(line) for line in to.read_text().splitlines()]
    assert [each["task"] for each in samples] == ["multiple_choice"] * 4
    assert measures["acc"]["value"] == sum(each["acc"] for each in samples) / 4
    assert measures["acc"]["higher_is_better"] is True
    assert not list(tmp_path.glob("*.lock"))
    run(capsys, str(saved), *tasks, "--log-samples", str(tmp_path / "folder"))
    lines = (tmp_path / "folder" / "multiple_choice.jsonl").read_text()
    assert lines == to.read_text()


def test_crows_pairs_score_as_in_the_audit_of_bias(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.csv"
    texts = [(f"The {10 + n} cats, too.", f"The {21 - n} cats, too.") for n in range(12)]
    rows = [f'{n},"{more}","{less}",stereo,pets' for n, (more, less) in enumerate(texts)]
    head = ",sent_more,sent_less,stereo_antistereo,bias_type"
    file.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    data = ("--task-data", f"crows_pairs_file={file}")
    code, out, error = run(capsys, str(saved), "--tasks", "crows_pairs_file", *data, "--json")
    assert code == 0, error
    measures = json.loads(out)["tasks"]["crows_pairs_file"]["measures"]
    (share,) = [each["value"] for each in measures if each["name"] == "acc"]
    with pytest.raises(SystemExit):
        main(["audit", "bias", str(saved), "--crows-pairs", str(file), "--json"])
    audit = json.loads(capsys.readouterr().out)["probes"]["CrowS-Pairs"]["estimates"][0]
    assert 0 < audit["value"] < 100
    assert audit["value"] == pytest.approx(100 * share)


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ("--tasks", "cloze", *DATA, "--chat"),
            "tokenizer='bytes': has no chat template; put chat_template.jinja beside its "
            "tokenizer.json",
        ),
        (
            ("--tasks", " ,"),
            "--tasks=' ,': names no task; name some: A,B",
        ),
        (
            ("--tasks", "cloze", "--task-data", "texts.jsonl"),
            "--task-data='texts.jsonl': must be TASK=FILE, or TASK:SPLIT=FILE; write it so",
        ),
        (
            ("--tasks", "cloze", *DATA, "--task-folder", "nowhere"),
            "--task-folder='nowhere': is no folder; give the folder of the task files",
        ),
        (
            ("--tasks", "cloze", *DATA, "--beams", "2"),
            "--beams=2: has no effect with --tasks, whose files say how texts are written; "
            "leave it out",
        ),
        (
            ("--data", "x", "--limit", "2"),
            "--limit=2: has no effect without --tasks; leave it out",
        ),
        (
            ("--data", "x", "--tasks", "cloze"),
            "--data, --pairs, --tasks: exactly one of them says what to evaluate on; "
            "give one of the three",
        ),
    ],
)
def test_mistakes_are_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], line: str
) -> None:
    assert run(capsys, str(saved), *words) == (2, "", f"roots: error: {line}\n")


def test_tokenizer_of_another_model_is_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers.words import write_words

    words = write_words(tmp_path / "words")
    code, out, error = run(capsys, str(saved), "--tasks", "cloze", *DATA, "--tokenizer", str(words))
    assert (code, out) == (2, "")
    rule = f"has another vocabulary than the model in {saved} was trained with"
    fix = "leave it out, or give the tokenizer of that training"
    assert error == f"roots: error: --tokenizer={str(words)!r}: {rule}; {fix}\n"
