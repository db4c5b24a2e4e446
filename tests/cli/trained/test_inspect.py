"""`roots inspect` on a checkpoint saved under tensor 2 x pipeline 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from roots.cli.main import main
from roots.data.indexed import IndexedWriter
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.cli.trained.test_inference import save_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ByteTokenizer()
    path = tmp_path_factory.mktemp("data") / "valid"
    with IndexedWriter(path, words.vocab_size) as writer:
        for _ in range(3):
            text = "It was a bright cold day in April."
            writer.add(np.array([*words.encode(text), words.end_of_document]))
        writer.finish(tokenizer=words.fingerprint, end_of_document=words.end_of_document)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == code, captured.err
    return captured.out if code == 0 else captured.err


def test_text_is_told_in_lines_and_on_a_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    out = call(capsys, run, "--text", "once a time", "--to", page, "--nearest", "t")
    labels = [line[:12].strip() for line in out.splitlines()]
    assert labels == [
        "checkpoint",
        "loss",
        "dearest",
        "logit lens",
        "repeated",
        "induction",
        "previous",
        "duplicate",
        "first",
        "residual",
        "fp16",
        "nearest",
        "page",
    ]
    assert "of 10 tokens" in out
    assert "induction   no head\n" in out
    assert "nearest     't': " in out
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert '"text":"once a time"' in html


def test_json_has_all_and_says_the_same_whatever_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(call(capsys, run, "--text", "once a time", "--tokens", 4, "--json"))
    assert found["checkpoint"] == str(run / "checkpoints" / "step_00000007")
    assert len(found["attention"][0][0]) == 4
    page = tmp_path / "report.html"
    again = call(capsys, run, "--text", "once a time", "--tokens", 4, "--json", "--to", page)
    assert json.loads(again) == found
    assert page.exists()


def test_lens_is_fitted_on_data_kept_and_used_for_a_text(
    run: Path, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lens = tmp_path / "lens.safetensors"
    fit = (run, "--data", prefix, "--windows", 2, "--fit", "--fit-steps", 8, "--lens", lens)
    out = call(capsys, *fit)
    assert "tuned lens  " in out
    assert lens.exists()
    found = json.loads(call(capsys, run, "--text", "once a time", "--lens", lens, "--json"))
    tuned, logit = found["lenses"]["tuned"], found["lenses"]["logit"]
    assert tuned["losses"][2] == logit["losses"][2]
    assert tuned["losses"][0] != logit["losses"][0]


@pytest.mark.parametrize(
    "words, line",
    [
        ((), "--text, --data: exactly one of them says what the model reads; give one of the two"),
        (
            ("--text", "a", "--data", "b"),
            "--text, --data: exactly one of them says what the model reads; give one of the two",
        ),
        (
            ("--text", "some words", "--fit"),
            "--fit: needs a dataset to train the lens on; give --data PREFIX instead of --text",
        ),
        (
            ("--text", "some words", "--windows", "2"),
            "--windows=2: has no effect with --text, which is read whole; leave it out, or give "
            "--data",
        ),
        (
            ("--text", "some words", "--fit-steps", "2"),
            "--fit-steps=2: has no effect without --fit; leave it out, or give --fit",
        ),
        (
            ("--text", "some words", "--to", "missing/page.html"),
            "--to='missing/page.html': there is no such folder; make the folder first, or name "
            "another file",
        ),
        (("--text", "some words", "--to", "."), "--to='.': is a folder; name a file in it"),
        (
            ("--text", ""),
            "--text='': holds no token that is predicted from another; give a longer text",
        ),
        (
            ("--text", "some words that are longer than this"),
            "tokens in a row=36: is more than the 24 positions that the model has learned; "
            "shorten the text",
        ),
        (
            ("--text", "some words", "--nearest", "ab"),
            "--nearest='ab': is 2 tokens ('0x61', '0x62'); give a text of one, with its space if "
            "any",
        ),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    line: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, run, *words, code=2) == f"roots: error: {line}\n"


def test_tokenizer_of_another_model_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text("one two three one two three " * 20)
    with pytest.raises(SystemExit):
        main(
            [
                *("tokenizer", "train", "--vocab-size", "300"),
                *("--out", str(tmp_path / "tokenizer"), str(tmp_path / "corpus.txt")),
            ]
        )
    capsys.readouterr()
    words = ("--text", "some words", "--tokenizer", tmp_path / "tokenizer")
    error = call(capsys, run, *words, code=2)
    assert error.count("\n") == 1
    assert "tokenizer" in error
