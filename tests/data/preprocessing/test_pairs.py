"""Files of pairs to two datasets that belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roots.data.indexed import IndexedDataset
from roots.data.preprocessing.pairs import preprocess_pairs
from roots.errors import RootsError
from roots.tokenizer.tokenizer import ByteTokenizer, load_tokenizer
from tests.helpers.words import BOS, EOS, TURN, write_words

WORDS = ByteTokenizer()


def texts_of(prefix):
    """The texts of a dataset, each of which must end with the end-of-document token."""
    dataset = IndexedDataset(prefix)
    documents = [dataset[number].tolist() for number in range(len(dataset))]
    assert all(document[-1] == WORDS.end_of_document for document in documents)
    return [WORDS.decode(document[:-1]) for document in documents]


def write_pairs(path, count):
    lines = [f"source {n}\t{n * n} \u00fc" for n in range(count)]
    path.write_text("source\ttarget\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_both_sides_keep_their_order_for_any_number_of_workers(tmp_path):
    # More lines than a batch holds, so that workers finish out of order.
    path = write_pairs(tmp_path / "a.tsv", 3000)
    contents = []
    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        summary = preprocess_pairs([path], out, "bytes", num_workers=workers)
        assert (summary.source.documents, summary.target.documents) == (3000, 3000)
        names = [f"{out}.{side}.{end}" for side in ("source", "target") for end in ("bin", "idx")]
        contents.append([Path(name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert texts_of(f"{tmp_path}/out0.source") == [f"source {n}" for n in range(3000)]
    assert texts_of(f"{tmp_path}/out0.target") == [f"{n * n} \u00fc" for n in range(3000)]


def test_sources_begin_as_their_tokenizer_says_and_targets_do_not(tmp_path):
    words = str(write_words(tmp_path / "words"))
    (tmp_path / "a.tsv").write_text("source\ttarget\nthe cat\tmat\n")
    tokenizer = load_tokenizer(words)
    cat, mat = (tokenizer.encode(text) for text in ("the cat", "mat"))
    for options, begin, end in (({}, (BOS,), EOS), ({"end_token": "<turn>"}, (BOS,), TURN)):
        summary = preprocess_pairs([tmp_path / "a.tsv"], tmp_path / "out", words, **options)
        assert IndexedDataset(tmp_path / "out.source")[0].tolist() == [*begin, *cat, end]
        assert IndexedDataset(tmp_path / "out.target")[0].tolist() == [*mat, end]
        assert (summary.source.begin_tokens, summary.target.begin_tokens) == (begin, ())


def test_broken_pair_ends_the_run_or_is_left_out_on_both_sides(tmp_path):
    path = tmp_path / "a.jsonl"
    good = '{"source": "a", "target": "b"}\n'
    path.write_text(good + '{"source": "c", "target": ""}\n' + good)
    with pytest.raises(RootsError, match=r"line 2: .* the field 'target' is empty"):
        preprocess_pairs([path], tmp_path / "out", "bytes")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.jsonl"]
    summary = preprocess_pairs([path], tmp_path / "out", "bytes", on_error="skip")
    assert summary.num_skipped == 1
    assert texts_of(tmp_path / "out.source") == ["a", "a"]
    assert texts_of(tmp_path / "out.target") == ["b", "b"]


def test_file_without_whole_pairs(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RootsError) as caught:
        preprocess_pairs([path], tmp_path / "out", "bytes", on_error="skip")
    assert caught.value.lines == (
        f"FILES='{path}': no pairs in it (1 broken ones); "
        "name files with pairs, or check --source-key and --target-key",
    )


def test_megatron_reads_both_sides(tmp_path):
    megatron = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    preprocess_pairs([write_pairs(tmp_path / "a.tsv", 5)], tmp_path / "out", "bytes")
    for side in ("source", "target"):
        ours = IndexedDataset(f"{tmp_path}/out.{side}")
        theirs = megatron.IndexedDataset(f"{tmp_path}/out.{side}")
        assert len(theirs) == len(ours) == 5
        assert all(np.array_equal(theirs[n], ours[n]) for n in range(5))
