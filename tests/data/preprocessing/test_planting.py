"""Canaries stand among the documents of a corpus, everywhere and as often as asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from roots.data.canaries import canaries_path, draw_canaries
from roots.data.indexed import IndexedDataset
from roots.data.preprocessing.file_lists import find_files
from roots.data.preprocessing.planting import Planter
from roots.data.preprocessing.texts import preprocess
from roots.errors import RootsError
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.words import BOS, write_words

CANARIES = draw_canaries(3, (0, 1, 40), seed=11)


def corpus(folder: Path, documents: int = 3000) -> list[Path]:
    """Two files, of many documents and of one."""
    lines = [json.dumps({"text": f"document {number}"}) + "\n" for number in range(documents)]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "b.txt").write_text("one document\n" * 100, encoding="utf-8")
    return [folder / "a.jsonl", folder / "b.txt"]


def texts_of(prefix: Path) -> list[str]:
    indexed = IndexedDataset(prefix)
    return [ByteTokenizer().decode(indexed[number].tolist()) for number in range(len(indexed))]


def test_every_secret_has_as_many_documents_as_were_asked_for(tmp_path: Path) -> None:
    summary = preprocess(corpus(tmp_path), tmp_path / "out", "bytes", canaries=CANARIES)
    plain = preprocess(corpus(tmp_path), tmp_path / "plain", "bytes")
    texts = texts_of(tmp_path / "out")
    counts = Counter(texts)
    for canary in CANARIES.canaries:
        assert counts[CANARIES.filled(canary.name, canary.digits)] == canary.repeats
    assert summary.description.documents == 3001 + CANARIES.documents
    planted = {CANARIES.filled(each.name, each.digits) for each in CANARIES.canaries}
    assert [text for text in texts if text not in planted] == texts_of(tmp_path / "plain")
    assert (summary.files, summary.num_bare_files) == (plain.files, plain.num_bare_files) == (2, 0)


def test_places_are_spread_evenly_over_the_corpus(tmp_path: Path) -> None:
    preprocess(corpus(tmp_path), tmp_path / "out", "bytes", canaries=CANARIES)
    texts = texts_of(tmp_path / "out")
    places = [number / len(texts) for number, text in enumerate(texts) if "secret" in text]
    # Documents have nearly the same bytes; the largest distance of 123 even places, at 0.1%.
    steps = np.arange(len(places)) / len(places)
    assert np.abs(np.array(places) - steps).max() < 1.95 / np.sqrt(len(places))


def test_dataset_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    files = corpus(tmp_path, documents=200)
    for workers in (0, 1):
        prefix = tmp_path / str(workers)
        preprocess(files, prefix, "bytes", canaries=CANARIES, num_workers=workers)
    for ending in (".bin", ".idx", ".json", ".canaries.json"):
        assert (tmp_path / f"0{ending}").read_bytes() == (tmp_path / f"1{ending}").read_bytes()


def test_canaries_stand_between_the_tokens_of_their_tokenizer(tmp_path: Path) -> None:
    words = write_words(tmp_path / "words")
    preprocess(corpus(tmp_path, 5), tmp_path / "out", str(words), canaries=CANARIES)
    indexed = IndexedDataset(tmp_path / "out")
    assert {int(indexed[number][0]) for number in range(len(indexed))} == {BOS}
    assert len({int(indexed[number][-1]) for number in range(len(indexed))}) == 1


def test_canaries_behind_the_last_bytes_are_planted_too() -> None:
    planter = Planter(CANARIES, ByteTokenizer(), 1000, np.dtype("<u2"))
    tokens, lengths = planter.plant(np.array([1, 2, 3], "<u2"), np.array([1, 2]), 10)
    rest, rest_lengths = planter.rest()
    assert len(lengths) + len(rest_lengths) == 2 + CANARIES.documents
    assert len(tokens) + len(rest) == lengths.sum() + rest_lengths.sum()
    assert len(planter.rest()[0]) == 0


def test_corpus_of_canaries_alone_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(RootsError, match="no text in it"):
        preprocess([tmp_path / "a.jsonl"], tmp_path / "out", "bytes", canaries=CANARIES)
    assert not list(tmp_path.glob("out*"))


def test_a_dataset_without_canaries_takes_the_place_of_one_with_them(tmp_path: Path) -> None:
    preprocess(corpus(tmp_path, 5), tmp_path / "out", "bytes", canaries=CANARIES)
    assert canaries_path(tmp_path / "out").is_file()
    preprocess(corpus(tmp_path, 5), tmp_path / "out", "bytes")
    assert not canaries_path(tmp_path / "out").exists()


def test_file_of_canaries_is_no_text_of_a_folder(tmp_path: Path) -> None:
    preprocess(corpus(tmp_path, 5), tmp_path / "out", "bytes", canaries=CANARIES)
    found = find_files([tmp_path])
    assert [path.name for path in found.paths] == ["a.jsonl", "b.txt"]
    assert found.left_out["of a dataset"] == 2
