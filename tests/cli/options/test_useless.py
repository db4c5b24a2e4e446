"""Options that would do nothing are refused, each with its line; those that matter are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.checkpoint.manifest import CONFIG_NAME, Layout, Manifest, describe_files, write_manifest
from roots.cli.main import main
from roots.config import dump_config, parse_config

OF_DATA = "has no effect with --data, which compares no texts"
GIVE_PAIRS = "leave it out, or give --pairs instead of --data"
NO_BEAMS = "has no effect without --beams; leave it out, or give --beams"
OF_PAIRS = "has no effect on beam search, by which an encoder-decoder writes; leave it out"


def checkpoint(folder: Path, architecture: str) -> Path:
    """One with a config and no weights: what is refused is refused before they are read."""
    model = {"architecture": architecture}
    if architecture == "encoder_decoder":
        config = parse_config({"model": model, "data": {"objective": "pairs"}})
    else:
        config = parse_config({"model": model})
    step = folder / architecture / "step_00000001"
    step.mkdir(parents=True)
    (step / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    layout = Layout(tensor=1, pipeline=1, data=1, zero_stage=0, precision="fp32")
    write_manifest(step, Manifest(1, 1, layout, describe_files(step, [CONFIG_NAME])))
    return step


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


CHANCE = [
    (("--temperature", "1.0"), "--temperature=1.0"),
    (("--top-k", "3"), "--top-k=3"),
    (("--top-p", "0.9"), "--top-p=0.9"),
    (("--seed", "1234"), "--seed=1234"),
]


@pytest.mark.parametrize("words, shown", CHANCE)
@pytest.mark.parametrize("other", [("--beams", "2"), ("--greedy",)])
def test_nothing_is_left_to_chance_with_beams_or_greed(
    other: tuple[str, ...],
    words: tuple[str, str],
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder = checkpoint(tmp_path, "decoder")
    found = errors(capsys, "generate", decoder, "--prompt", "a", *other, *words)
    rule = f"has no effect with {other[0]}, which leaves nothing to chance"
    assert found == [f"{shown}: {rule}; leave it out, or leave out {other[0]}"]


@pytest.mark.parametrize("words, shown", CHANCE)
def test_encoder_decoder_leaves_nothing_to_chance(
    words: tuple[str, str], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(tmp_path, "encoder_decoder")
    assert errors(capsys, "generate", model, "--source", "a", *words) == [f"{shown}: {OF_PAIRS}"]


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_length_penalty_needs_beams(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(tmp_path, architecture)
    found = errors(capsys, "generate", model, "--prompt", "a", "--length-penalty", "1")
    assert found == [f"--length-penalty=1.0: {NO_BEAMS}"]


def test_greed_is_one_beam_and_not_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(tmp_path, "decoder")
    words = ("generate", model, "--prompt", "a", "--greedy", "--beams")
    assert errors(capsys, *words, "2") == [
        "--greedy: takes the likeliest token, where --beams 2 keeps 2 texts; "
        "leave out one of the two"
    ]
    # One beam is greedy, so this goes on, to the weights that the checkpoint lacks.
    (line,) = errors(capsys, *words, "1")
    assert line.startswith(f"checkpoint='{model}': holds no weights/")


TEXTS = "has no effect without --pairs; leave it out, or give --pairs"
PAIRS = "has no effect with --pairs; leave it out, or give --source-key, --target-key"


@pytest.mark.parametrize(
    "command",
    [
        ("preprocess", "--tokenizer", "bytes", "--out", "set"),
        ("tokenizer", "train", "--vocab-size", "300", "--out", "words"),
    ],
    ids=["preprocess", "tokenizer"],
)
def test_keys_of_texts_and_of_pairs_exclude_each_other(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none.tsv"
    found = errors(capsys, *command, none, "--source-key", "en", "--target-key", "2")
    assert found == [f"--source-key='en': {TEXTS}", f"--target-key='2': {TEXTS}"]
    found = errors(capsys, *command, none, "--pairs", "--text-key", "text")
    assert found == [f"--text-key='text': {PAIRS}"]
    # What fits goes on, to the file that is not there.
    for words in (("--pairs", "--source-key", "en"), ("--text-key", "body")):
        (line,) = errors(capsys, *command, none, *words)
        assert str(none) in line
