"""`roots generate`: prompts from files, texts to files, what is told meanwhile."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from tests.helpers.models import save_model

ROOT = Path(__file__).parents[3]
SHORT = ("--max-new-tokens", "5")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step_00000001"
    model = {"vocab_size": 257, "sequence_length": 64}
    save_model(folder, model=model, data={"tokenizer": "bytes"})
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["generate", *(str(word) for word in words)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def continuations(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)["continuations"]
    return found


def test_prompts_come_from_arguments_files_and_standard_input(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = ["one", "two\ttabs", "three"]
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    expected = continuations(capsys, checkpoint, *given, *SHORT)
    assert [each["prompt"] for each in expected] == prompts
    lines = tmp_path / "prompts.txt"
    lines.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    objects = tmp_path / "prompts.jsonl"
    records = [json.dumps({"prompt": prompt, "id": 1}) for prompt in prompts]
    objects.write_text("\n\n".join(records) + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    for file in (lines, objects, "-"):
        assert continuations(capsys, checkpoint, "--file", file, *SHORT) == expected


def test_results_are_gone_on_with_where_they_end(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, results = tmp_path / "prompts.txt", tmp_path / "texts.jsonl"
    prompts.write_text("one\ntwo\nthree\n", encoding="utf-8")
    words = (checkpoint, "--file", prompts, "--to", results, *SHORT)
    code, out, _ = call(capsys, *words)
    assert (code, out) == (0, f"wrote 3 texts to {results}\n")
    whole = results.read_bytes()
    assert [json.loads(line)["prompt"] for line in whole.splitlines()] == ["one", "two", "three"]
    # As a process leaves it that was ended while it wrote the second line.
    first, second, _ = whole.splitlines(keepends=True)
    results.write_bytes(first + second[:7])
    code, out, _ = call(capsys, *words)
    assert (code, out) == (0, f"wrote 2 texts to {results}, 1 were there\n")
    assert results.read_bytes() == whole
    assert call(capsys, *words)[1] == f"wrote 0 texts to {results}, 3 were there\n"
    prompts.write_text("one\nother\nthree\n", encoding="utf-8")
    code, _, err = call(capsys, *words)
    assert code == 2
    assert err == (
        f"roots: error: --to='{results}': line 2 is not of prompt 2; "
        "name another file, or remove this one\n"
    )
    assert results.read_bytes() == whole


def test_streamed_text_is_the_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = (checkpoint, "--prompt", "once", "--max-new-tokens", "9")
    (expected,) = continuations(capsys, *prompt)
    code, out, _ = call(capsys, *prompt, "--stream")
    assert (code, out) == (0, f"{expected['text']}\n")


def test_stop_texts_and_log_probabilities(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = (checkpoint, "--prompt", "once", "--max-new-tokens", "12", "--temperature", "0.5")
    (whole,) = continuations(capsys, *prompt)
    assert "likelihoods" not in whole
    stop = next(letter for letter in whole["text"][3:] if letter.isprintable())
    stopped = ("--stop", stop, "--stop", "not in it", "--log-probabilities", "2")
    (found,) = continuations(capsys, *prompt, *stopped)
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert found["stopped_by"] == "stop_text"
    assert [each["token_id"] for each in found["likelihoods"]] == found["token_ids"]
    assert all(len(each["likeliest"]) == 2 for each in found["likelihoods"])


@pytest.mark.parametrize(
    "words, lines",
    [
        ([], ["--prompt, --file: exactly one of them says what to continue; give one of the two"]),
        (
            ["--prompt", "a", "--file", "b"],
            ["--prompt, --file: exactly one of them says what to continue; give one of the two"],
        ),
        (
            ["--prompt", "a", "--prompt", "b", "--stream"],
            ["--stream: shows one text of one --prompt, as text; leave it out"],
        ),
        (
            ["--prompt", "a", "--log-probabilities", "1"],
            ["--log-probabilities=1: is told with --json or --to alone; give one of the two"],
        ),
        (
            ["--prompt", "a", "--beams", "2", "--stop", "x", "--min-p", "0.1"],
            [
                "--min-p=0.1: has no effect with --beams, which leaves nothing to chance; "
                "leave it out, or leave out --beams",
                "--stop='x': has no effect on beam search, by which --beams 2 writes; "
                "leave it out, or leave out --beams",
            ],
        ),
        (
            ["--prompt", "a", "--stop", ""],
            ["stop='': is empty, and stands everywhere; give the text that ends a continuation"],
        ),
        (
            ["--prompt", "a", "--tensor", "2"],
            [
                "layout=2: tensor 2 x pipeline 1 must divide the 1 processes; start as many "
                "processes as the model is to be cut into, or a multiple"
            ],
        ),
        (
            ["--file", "nowhere.txt"],
            [
                "--file='nowhere.txt': cannot be read (No such file or directory); "
                "name a file of prompts"
            ],
        ),
    ],
)
def test_what_cannot_be_is_told(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], lines: list[str]
) -> None:
    code, out, err = call(capsys, checkpoint, *words)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"roots: error: {line}" for line in lines]


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("a.txt", b"", "--file='{}': holds no prompts; write one a line"),
        ("a.txt", b"ab\xff", "--file='{}': is not UTF-8 (byte 2); convert it to UTF-8"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}\n',
            '{}:2=\'{{"text": "b"}}\': must be an object with a text "prompt"; '
            "mend or remove that line",
        ),
    ],
)
def test_files_that_hold_no_prompts_are_told(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    line: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, _, err = call(capsys, checkpoint, "--file", path)
    assert (code, err) == (2, f"roots: error: {line.format(path)}\n")


def test_ranks_of_the_launcher_write_what_one_process_does(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the documented command; the first rank alone prints."""
    words = [str(checkpoint), "--prompt", "once", "--prompt", "a", *SHORT, "--json"]
    expected = continuations(capsys, *words[:-1])
    command = [str(ROOT / "launch" / "local.sh"), "2", "generate", *words, "--tensor", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["continuations"] == expected
