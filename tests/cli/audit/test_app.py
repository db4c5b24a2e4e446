"""`roots audit` on an untrained model: what is printed, and one line for every mistake."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from roots.data.canaries import draw_canaries
from roots.data.indexed import IndexedDataset, IndexedWriter
from tests.helpers.decoders import small_decoder
from tests.helpers.trained import byte_config, save_decoder, write_texts

TEXTS = [f"Line {number} of the text tells of {number * number} birds." for number in range(30)]
HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type\n"
PAIR = "0,Cats are sly.,Dogs are sly.,stereo,pets\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, a dataset with canaries, one without, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("audit")
    config = byte_config()
    for step, seed in ((1, 1), (2, 9)):
        save_decoder(folder / "run", config, small_decoder(config.model, seed=seed), step)
    write_texts(folder / "train", TEXTS, draw_canaries(2, (0, 2), text="NAME: ###", seed=3))
    write_texts(folder / "unseen", [text.upper() for text in TEXTS])
    (folder / "pairs.csv").write_text(HEADER + PAIR, encoding="utf-8")
    with IndexedWriter(folder / "foreign", 257) as writer:
        writer.add(IndexedDataset(folder / "train")[0])
        writer.finish("ids-ffff-0", end_of_document=0)
    return folder


@pytest.fixture
def call(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command prints in that folder, after its exit code is the one expected."""
    monkeypatch.chdir(place)

    def called(*words: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["audit", *map(str, words)])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out if code == 0 else captured.err

    return called


def test_canaries_are_told_by_their_repeats(call: Any) -> None:
    words = ("canaries", "run", "--data", "train", "--samples", 1000)
    lines = call(*words).splitlines()
    assert lines[:5] == [
        "checkpoint  run/checkpoints/step_00000002",
        "canaries    'NAME: ###', 1,000 possible secrets",
        "exposure    1.44 bits by chance, 9.97 at most",
        "",
        "repeats  secrets  mean exposure  95% interval    written out",
    ]
    assert [line.split()[:2] for line in lines[5:]] == [["0", "2"], ["2", "2"]]
    report = json.loads(call(*words, "--json"))
    assert report["checkpoint"] == "run/checkpoints/step_00000002"
    assert report["most"] == pytest.approx(math.log2(1000))
    assert [each["repeats"] for each in report["canaries"]] == [0, 0, 2, 2]
    assert {each["method"] for each in report["canaries"]} == {"exact"}


def test_memorisation_is_a_table_of_prefixes_and_occurrences(call: Any) -> None:
    words = ("memorisation", "run", "--data", "train", "--held-out", "unseen", "--samples", 5)
    lengths = ("--prefix-tokens", "4,8", "--continuation-tokens", 4)
    lines = call(*words, *lengths).splitlines()
    assert lines[1:4] == [
        "verbatim      4 tokens, greedily",
        "",
        "occurs        runs  prefix  verbatim  95% interval",
    ]
    assert re.fullmatch(r"once +5 +4 +0\.0%  0\.0% to 43\.4%", lines[4])
    report = json.loads(call(*words, *lengths, "--json"))
    assert [each["prefix_tokens"] for each in report["held_out"]] == [4, 8]
    assert {(each["fewest"], each["most"]) for each in report["held_in"]} >= {(1, 1), (16, 31)}


def test_membership_is_a_table_of_scores(call: Any) -> None:
    words = ("membership", "run", "--data", "train", "--held-out", "unseen", "--samples", 20)
    lines = call(*words).splitlines()
    assert lines[1].startswith("documents   20 of the data, ")
    assert [line.split()[0] for line in lines[4:]] == ["loss", "zlib", "min_k", "no_model"]
    report = json.loads(call(*words, "--json"))
    assert {each["score"] for each in report["attacks"]} == {"loss", "zlib", "min_k", "no_model"}


def test_bias_of_two_checkpoints_is_compared(call: Any) -> None:
    words = ("bias", "run", "--crows-pairs", "pairs.csv")
    lines = call(*words).splitlines()
    assert lines[2] == "CrowS-Pairs"
    assert [line.split()[0] for line in lines[4:]] == ["all", "pets", "stereo"]
    both = (*words, "--against", "run/checkpoints/step_00000001")
    compared = call(*both).splitlines()
    assert compared[1] == "against     run/checkpoints/step_00000001"
    assert compared[6].split()[0] == "against"
    report = json.loads(call(*both, "--json"))["probes"]["CrowS-Pairs"]
    (first, *_), (other, *_), (change, *_) = (
        report[name] for name in ("estimates", "against", "difference")
    )
    assert change["value"] == first["value"] - other["value"]


def test_the_same_model_does_not_differ_from_itself(call: Any) -> None:
    words = ("bias", "run", "--crows-pairs", "pairs.csv", "--against", "run", "--json")
    found = json.loads(call(*words))["probes"]["CrowS-Pairs"]["difference"]
    assert {tuple(each["interval"]) for each in found} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ("canaries", "run", "--data", "unseen"),
            "unseen.canaries.json: no such file: no canaries were planted in this dataset; "
            "plant some by `roots preprocess --canaries N` and train on that",
        ),
        (
            ("membership", "run", "--data", "train", "--held-out", "foreign"),
            "data='foreign': was made with another tokenizer (fingerprint ids-ffff-0); "
            "give the dataset of this model's training, or its tokenizer by --tokenizer",
        ),
        (
            ("memorisation", "run", "--data", "train", "--prefix-tokens", "a,b"),
            "--prefix-tokens='a,b': must be numbers with commas between them; "
            "write them as 16,32,64",
        ),
        (
            ("memorisation", "run", "--data", "train"),
            "--prefix-tokens='16,32,64': with --continuation-tokens 32 makes 96 tokens, and "
            "the model reads 64 (model.sequence_length); shorten one of the two",
        ),
        (
            ("memorisation", "run", "--data", "train", "--prefix-tokens", "32"),
            "data='train': no document has 64 tokens, the longest prefix and its continuation; "
            "shorten --prefix-tokens or --continuation-tokens",
        ),
        (
            ("membership", "run", "--data", "train"),
            "--held-out: is not given, and there is nothing to tell documents of the data from; "
            "give a dataset of like texts that the model was not trained on",
        ),
        (
            ("membership", "run", "--data", "train", "--held-out", "nowhere"),
            "nowhere.idx: no such file; check data.train and data.valid, or run `roots preprocess`",
        ),
        (
            ("bias", "run"),
            "--crows-pairs, --stereoset, --winobias: none of them is given; "
            "give the file of one of them, which their authors publish",
        ),
        (
            ("bias", "run", "--crows-pairs", "train.json"),
            "train.json: has no column sent_more; "
            "give the CSV file of CrowS-Pairs, crows_pairs_anonymized.csv",
        ),
    ],
)
def test_mistakes_are_one_line(call: Any, words: tuple[object, ...], line: str) -> None:
    assert call(*words, code=2) == f"roots: error: {line}\n"
