"""Options that would do nothing are refused, each with its line; those that matter are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.cli.main import main

OF_DATA = "has no effect with --data, which compares no texts"
GIVE_PAIRS = "leave it out, or give --pairs instead of --data"


def errors(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The lines of an error that ends with the code of bad input."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return [line.removeprefix("roots: error: ") for line in captured.err.splitlines()]


@pytest.mark.parametrize(
    "words, shown",
    [
        (("--source-key", "en"), "--source-key='en'"),
        (("--target-key", "de"), "--target-key='de'"),
        (("--baselines", "train.tsv"), "--baselines='train.tsv'"),
        (("--beams", "4"), "--beams=4"),
        (("--length-penalty", "0.6"), "--length-penalty=0.6"),
        (("--max-new-tokens", "0"), "--max-new-tokens=0"),
        (("--written", "texts.txt"), "--written='texts.txt'"),
    ],
)
def test_evaluation_on_data_refuses_what_concerns_pairs(
    words: tuple[str, str], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = errors(capsys, "evaluate", tmp_path, "--data", tmp_path / "none", *words)
    assert found == [f"{shown}: {OF_DATA}; {GIVE_PAIRS}"]


def test_every_option_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--length-penalty", "2", "--beams", "3")
    found = errors(capsys, "evaluate", tmp_path, "--data", tmp_path / "none", *words)
    assert [line.split(":")[0] for line in found] == ["--beams=3", "--length-penalty=2.0"]


@pytest.mark.parametrize("words", [("--batch-size", "2"), ("--tokenizer", "bytes"), ("--json",)])
def test_evaluation_on_data_takes_what_serves_both(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = errors(capsys, "evaluate", tmp_path, "--data", tmp_path / "none", *words)
    assert line.startswith(f"{tmp_path / 'none'}.idx: no such file")
