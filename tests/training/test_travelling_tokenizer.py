"""What the folder `tokenizer` of a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.config import RunConfig, parse_config
from roots.data.preprocessing.pairs import preprocess_pairs
from roots.data.preprocessing.texts import preprocess
from roots.errors import RootsError
from roots.tokenizer.tokenizer import load_tokenizer
from roots.training.travelling_tokenizer import tokenizer_files
from tests.helpers.words import BOS, EOS, TURN, write_words


def config_of(data: dict[str, Any], **model: Any) -> RunConfig:
    return parse_config({"model": {"vocab_size": 300, "sequence_length": 8, **model}, "data": data})


def corpus(folder: Path, words: str, **options: Any) -> str:
    (folder / "a.txt").write_text("the cat sat on the mat")
    preprocess([folder / "a.txt"], folder / "data", words, num_workers=0, **options)
    return str(folder / "data")


def test_files_of_the_tokenizer_and_what_the_training_is_fed(tmp_path: Path) -> None:
    words = write_words(tmp_path / "words")
    (words / "config.json").write_text(json.dumps({"bos_token_id": BOS}))
    (words / "notes.txt").write_text("mine")
    prefix = corpus(tmp_path, str(words), begin_token="none", end_token="<turn>")
    files = tokenizer_files(config_of({"train": prefix, "tokenizer": str(words)}))
    assert sorted(files) == [
        "config.json",
        "documents.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, content in files.items():
        if name != "documents.json":
            assert content == (words / name).read_bytes()
    assert json.loads(files["documents.json"]) == {
        "format": "roots-documents",
        "version": 1,
        "begin_tokens": [],
        "end_of_document": TURN,
        "tokenizer": load_tokenizer(words, end_token="<turn>").fingerprint,
    }


def test_a_file_of_any_name_becomes_tokenizer_json(tmp_path: Path) -> None:
    words = write_words(tmp_path / "words")
    (words / "tokenizer.json").rename(words / "mine.json")
    files = tokenizer_files(config_of({"tokenizer": str(words / "mine.json")}))
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]


def test_data_alone_say_whose_they_are(tmp_path: Path) -> None:
    prefix = corpus(tmp_path, "bytes")
    (content,) = tokenizer_files(config_of({"train": prefix})).values()
    assert json.loads(content)["tokenizer"] == "bytes"
    assert tokenizer_files(config_of({"train": prefix, "tokenizer": "bytes"})) == {}
    assert tokenizer_files(config_of({"train": str(tmp_path / "foreign")})) == {}


def test_pairs_say_it_of_their_sources(tmp_path: Path) -> None:
    words = write_words(tmp_path / "words")
    (tmp_path / "a.tsv").write_text("source\ttarget\nthe cat\tmat\n")
    preprocess_pairs([tmp_path / "a.tsv"], tmp_path / "p", str(words), num_workers=0)
    data = {"train": str(tmp_path / "p"), "objective": "pairs", "tokenizer": str(words)}
    config = config_of(data, architecture="encoder_decoder")
    fed = json.loads(tokenizer_files(config)["documents.json"])
    assert (fed["begin_tokens"], fed["end_of_document"]) == ([BOS], EOS)


def test_a_tokenizer_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(RootsError, match=r"^tokenizer='.*gone': no such folder; "):
        tokenizer_files(config_of({"tokenizer": str(tmp_path / "gone")}))
