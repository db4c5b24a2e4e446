"""Values of a config that were written as options are told with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.cli.main import main


def lines_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text("{}\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["--training.steps=5"], "training.steps=5"),
        (["--training.steps", "5"], "training.steps=5"),
        (["-training.steps=5"], "training.steps=5"),
        (["--training.micro-batch-size=3"], "training.micro_batch_size=3"),
        (["--steps=5"], "training.steps=5 or evaluation.steps=5"),
        (["--lr", "3e-4"], "optimizer.learning_rate=3e-4"),
        (["--tensor-model-parallel-size=2"], "parallel.tensor=2"),
        (["--model.moe.top_k"], "model.moe.top_k=..."),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["config", "show"], ["verify", "--ranks", "2"]])
def test_value_with_dashes_is_told_without(
    command: list[str],
    words: list[str],
    fix: str,
    config: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (line,) = lines_of(capsys, *command, config, *words)
    rule = "is no option; values of the config have no dashes"
    assert line == f"roots: error: {words[0]}: {rule}; write {fix}"


def test_options_of_the_command_stay_options(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", "deepspeed", config, "--world-size", "2"])
    assert caught.value.code == 0
    assert "No such option: --foo" in " ".join(lines_of(capsys, "config", "show", config, "--foo"))
    assert "No such option: --lr" in " ".join(lines_of(capsys, "info", "--lr=3"))


@pytest.mark.parametrize("words", [["-h"], ["train", "-h"], ["config", "show", "-h"]])
def test_short_help_and_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for given in (words, ["--version"]):
        with pytest.raises(SystemExit) as caught:
            main(given)
        assert caught.value.code == 0
    assert "Usage: " in (output := capsys.readouterr().out)
    assert output.endswith("roots 0.1.0\n")
