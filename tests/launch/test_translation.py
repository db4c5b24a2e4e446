"""From pairs to scores by one command: a task that can be learned is learned."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import Machine, environment_with, started

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fuenf"}
TINY = (
    "model.hidden_size=64",
    "model.num_heads=2",
    "model.ffn_hidden_size=128",
    "model.num_encoder_layers=1",
    "model.num_layers=1",
    "model.dropout=0.0",
    "training.precision=fp32",
    "training.micro_batch_size=32",
    "training.global_batch_size=32",
    "data.group_batches=2",
    "evaluation.every_steps=0",
    "tracking.tensorboard=false",
)
USAGE = (
    "usage: launch/translation.sh [-c CONFIG] [-o FOLDER] [-v SIZE] [-s KEY] [-t KEY] [-r RANKS] "
    "TRAIN VALID TEST [section.key=value ...]"
)


def translate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script of this checkout, on one rank, with this interpreter."""
    command = ["bash", str(ROOT / "launch" / "translation.sh"), "-r", "1", *map(str, arguments)]
    environment = environment_with(
        PYTHONPATH=f"{ROOT}:{environment_with().get('PYTHONPATH', '')}",
        VIRTUAL_ENV=str(Path(sys.executable).parents[1]),
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, env=environment, cwd=ROOT, **pipes) as process:
        stdout, stderr = process.communicate(timeout=400)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def write_pairs(path: Path, count: int, seed: int) -> Path:
    """Two to four words, and the same in German in the opposite order: no unigram table has it."""
    choice = random.Random(seed)
    lines = ["source\ttarget"]
    for _ in range(count):
        words = choice.choices(list(WORDS), k=choice.randint(2, 4))
        lines.append(" ".join(words) + "\t" + " ".join(WORDS[w] for w in reversed(words)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_translation_beats_copying_and_a_unigram_table(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (`pip install sacrebleu`)")
    files = [
        write_pairs(tmp_path / f"{name}.tsv", count, seed)
        for seed, (name, count) in enumerate({"train": 600, "valid": 40, "test": 40}.items())
    ]
    steps = ("training.steps=250", "schedule.warmup_steps=30", "optimizer.learning_rate=0.004")
    lengths = ("model.sequence_length=12", "model.source_length=12")
    out = tmp_path / "out"
    result = translate("-o", out, "-v", "300", *files, *TINY, *steps, *lengths)
    assert result.returncode == 0, result.stdout + result.stderr
    scores = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert scores["pairs"] == 40
    assert scores["copy"]["bleu"] < 5
    assert scores["unigram"]["exact_match"] < 50
    assert scores["model"]["exact_match"] > 90, scores
    assert scores["model"]["bleu"] > scores["unigram"]["bleu"] + 20
    written = (out / "written.txt").read_text("utf-8").splitlines()
    targets = [line.split("\t")[1] for line in files[2].read_text("utf-8").splitlines()[1:]]
    exact = sum(text == target for text, target in zip(written, targets, strict=True))
    assert 100 * exact / 40 == pytest.approx(scores["model"]["exact_match"])


def test_questions_about_the_standard_library(tmp_path: Path) -> None:
    """The whole way of launch/question_pairs.py, on the first of its pairs."""
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (`pip install sacrebleu`)")
    command = [sys.executable, ROOT / "launch" / "question_pairs.py", tmp_path / "pairs"]
    subprocess.run(command, check=True, capture_output=True)
    files = []
    for name, count in (("train", 200), ("valid", 20), ("test", 10)):
        lines = (tmp_path / "pairs" / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert len(lines) > count
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("\n".join(lines[:count]), encoding="utf-8")
    example = json.loads(files[0].read_text("utf-8").splitlines()[0])
    assert example["question"].split(": ")[1].startswith(("def ", "class "))
    assert example["answer"]
    config = ROOT / "configs" / "run" / "question-answering.yaml"
    out = tmp_path / "out"
    keys = ("-s", "question", "-t", "answer")
    steps = ("training.steps=4", "schedule.warmup_steps=2", "model.sequence_length=16")
    result = translate("-c", config, "-o", out, "-v", "400", *keys, *files, *TINY, *steps)
    assert result.returncode == 0, result.stdout + result.stderr
    scores = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert set(scores["model"]) == {"bleu", "chrf", "exact_match", "f1", "signature"}
    assert 0 < scores["loss"] < 7


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["a.tsv", "b.tsv"], USAGE),
        (["-x", "a.tsv"], f"-x: unknown option, or its value is missing; {USAGE}"),
        (["a.tsv", "b.tsv", "c.tsv"], f"a.tsv: no such file; {USAGE}"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    result = Machine(tmp_path).run("launch/translation.sh", *arguments)
    assert (result.returncode, result.stderr) == (2, f"translation.sh: {line}\n")
