"""The .bin/.idx format: round trips, agreement with Megatron-core, and every way to be broken."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.errors import RootsError

DOCUMENTS = [[5, 6, 7, 0], [0], [9, 8, 0], [1, 2, 3, 4, 0]]


@pytest.fixture(scope="module")
def megatron_indexed():
    """Megatron-core's own reader and writer."""
    return pytest.importorskip(
        "megatron.core.datasets.indexed_dataset",
        reason="megatron-core is not installed (`pip install megatron-core`)",
        exc_type=ImportError,
    )


@pytest.mark.parametrize("vocab_size, dtype", [(65536, np.uint16), (65537, np.int32)])
def test_what_is_written_is_read_back(write_dataset, vocab_size, dtype):
    dataset = IndexedDataset(write_dataset(DOCUMENTS, vocab_size=vocab_size))
    assert dataset.dtype == dtype
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.num_tokens == sum(map(len, DOCUMENTS))
    assert dataset.document_starts(range(1, 4)).tolist() == [4, 5, 8, 13]
    assert dataset.description is not None
    assert dataset.description.max_token_id == 9
    dataset.check_index()


def test_documents_added_together_equal_documents_added_one_by_one(tmp_path, write_dataset):
    one_by_one = write_dataset(DOCUMENTS)
    with IndexedWriter(tmp_path / "together", 1000) as writer:
        tokens = np.concatenate([np.array(document) for document in DOCUMENTS])
        writer.add(tokens, np.array([len(document) for document in DOCUMENTS]))
        writer.finish("test", 0)
    for ending in (".bin", ".idx", ".json"):
        written = Path(f"{tmp_path}/together{ending}").read_bytes()
        assert written == Path(f"{one_by_one}{ending}").read_bytes()


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_megatron_reads_what_roots_writes(megatron_indexed, write_dataset, vocab_size):
    prefix = write_dataset(DOCUMENTS, vocab_size=vocab_size)
    theirs = megatron_indexed.IndexedDataset(str(prefix))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_roots_reads_what_megatron_writes(megatron_indexed, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    prefix = tmp_path / "theirs"
    builder = megatron_indexed.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    # Two sequences in one document, as `--split-sentences` writes them.
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6]), [1])
    builder.finalize(f"{prefix}.idx")
    dataset = IndexedDataset(prefix)
    assert [dataset[i].tolist() for i in range(2)] == [[1, 2, 3, 4, 5], [6]]
    assert dataset.description is None
    dataset.check_index()


def test_missing_file(tmp_path):
    with pytest.raises(RootsError) as caught:
        IndexedDataset(tmp_path / "absent")
    assert str(caught.value) == (
        f"{tmp_path}/absent.idx: no such file; "
        "check data.train and data.valid, or run `roots preprocess`"
    )


def test_truncated_tokens(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RootsError) as caught:
        IndexedDataset(prefix)
    assert str(caught.value) == (
        f"{prefix}.bin size=23: corpus.idx describes 26 bytes of tokens; "
        "run `roots preprocess` again, or copy both files again"
    )


@pytest.mark.parametrize(
    "offset, content, message",
    [
        (
            0,
            b"GGUF",
            "{idx} magic=b'GGUFIDX\\x00\\x00': an index starts with b'MMIDIDX\\x00\\x00'; give the "
            "prefix of a dataset that `roots preprocess` or Megatron wrote",
        ),
        (
            9,
            struct.pack("<Q", 2),
            "{idx} version=2: only version 1 can be read; run `roots preprocess` again on the text",
        ),
        (
            17,
            b"\x07",
            "{idx} token type=7: must be one of [1, 2, 3, 4, 5, 8]; "
            "run `roots preprocess` again, or copy both files again",
        ),
        (
            18,
            struct.pack("<Q", 0),
            "{idx}: holds no documents; run `roots preprocess` again, or copy both files again",
        ),
        (
            18,
            struct.pack("<Q", 5),
            "{idx} size=122: 5 sequences and 4 documents need 134 bytes; "
            "run `roots preprocess` again, or copy both files again",
        ),
        (
            114,
            struct.pack("<q", 3),
            "{idx}: the documents must span all 4 sequences; "
            "run `roots preprocess` again, or copy both files again",
        ),
    ],
    ids=["magic", "version", "token type", "no documents", "counts", "document bounds"],
)
def test_broken_index(write_dataset, offset, content, message):
    prefix = write_dataset(DOCUMENTS)
    overwrite(Path(f"{prefix}.idx"), offset, content)
    with pytest.raises(RootsError) as caught:
        IndexedDataset(prefix)
    assert str(caught.value) == message.format(idx=f"{prefix}.idx")


def test_truncated_header(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RootsError, match=r"idx size=20: the header alone has 34 bytes; run"):
        IndexedDataset(prefix)


def test_gap_between_sequences(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    overwrite(Path(f"{prefix}.idx"), 34 + 16 + 8, struct.pack("<q", 6))
    with pytest.raises(RootsError) as caught:
        IndexedDataset(prefix)
    assert str(caught.value) == (
        f"{prefix}.idx sequence 1: must start where the sequence before it ends; "
        "run `roots preprocess` again, or copy both files again"
    )


def test_document_that_ends_before_it_starts(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    overwrite(Path(f"{prefix}.idx"), 34 + 16 + 32 + 8, struct.pack("<q", 3))
    with pytest.raises(RootsError, match=r"idx document 1: must not end before it starts; run"):
        IndexedDataset(prefix)


def test_side_file_of_another_dataset(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    other = write_dataset([[1, 2, 0]], name="other")
    Path(f"{prefix}.json").write_bytes(Path(f"{other}.json").read_bytes())
    with pytest.raises(RootsError) as caught:
        IndexedDataset(prefix)
    assert str(caught.value) == (
        f"{prefix}.json: describes 1 documents of 3 tokens, corpus.idx 4 of 13; "
        "run `roots preprocess` again, or remove the file (it is optional)"
    )


def test_token_outside_the_vocabulary_is_not_written(tmp_path):
    with IndexedWriter(tmp_path / "bad", 10) as writer, pytest.raises(RootsError) as caught:
        writer.add(np.array([3, 10]))
    assert str(caught.value) == "token id=10: the vocabulary has ids 0 to 9; use its tokenizer"
    assert list(tmp_path.iterdir()) == []


def test_dataset_without_documents_is_not_written(tmp_path):
    with IndexedWriter(tmp_path / "empty", 10) as writer, pytest.raises(RootsError) as caught:
        writer.finish("test", 0)
    assert str(caught.value) == (
        f"{tmp_path}/empty.bin: there are no documents to write; name files with text"
    )


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RootsError) as caught:
        IndexedWriter(tmp_path / "file" / "data", 10)
    assert str(caught.value) == (
        f"--out='{tmp_path}/file/data': cannot be written (File exists); "
        "name a prefix in a folder that can be written"
    )


def test_unfinished_rewrite_leaves_the_former_dataset(write_dataset):
    prefix = write_dataset(DOCUMENTS)
    with IndexedWriter(prefix, 1000) as writer:
        writer.add(np.array([1, 2, 3]))
    dataset = IndexedDataset(prefix)
    assert [dataset[i].tolist() for i in range(4)] == DOCUMENTS
    assert sorted(path.name for path in prefix.parent.iterdir()) == [
        "corpus.bin",
        "corpus.idx",
        "corpus.json",
    ]


def test_index_appears_last(write_dataset, monkeypatch):
    prefix = write_dataset(DOCUMENTS)
    renamed = []
    real = __import__("os").replace

    def replace(source, target):
        assert not Path(f"{prefix}.idx").exists(), "new tokens under an old index"
        renamed.append(Path(target).suffix)
        real(source, target)

    monkeypatch.setattr("roots.data.indexed.os.replace", replace)
    write_dataset([[1, 0]])
    assert renamed == [".bin", ".json", ".idx"]
    assert IndexedDataset(prefix).num_tokens == 2


def test_damage_of_a_large_index_is_told_by_its_check(write_dataset, monkeypatch):
    monkeypatch.setattr("roots.data.indexed._BLOCK", 2)
    prefix = write_dataset(DOCUMENTS)
    overwrite(Path(f"{prefix}.idx"), 34 + 16 + 32 + 8, struct.pack("<q", -(2**63)))
    with pytest.raises(RootsError, match=r"idx document 0: must not end before it starts; run"):
        IndexedDataset(prefix).check_index()


def test_tokens_that_are_no_whole_number(write_dataset):
    prefix = write_dataset([[1, 0]])
    overwrite(Path(f"{prefix}.idx"), 34 + 4, struct.pack("<q", 1))
    Path(f"{prefix}.bin").write_bytes(b"\0" * 5)
    with pytest.raises(RootsError, match=r"idx sequence 0: must start where the sequence before"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("ending", [".bin", ".idx", ".json", ".BIN"])
def test_file_of_a_dataset_is_no_prefix(write_dataset, tmp_path, ending):
    prefix = write_dataset(DOCUMENTS)
    with pytest.raises(RootsError) as caught:
        IndexedDataset(f"{prefix}{ending}")
    assert str(caught.value) == (
        f"{prefix}{ending}: is a file of a dataset or ends like one, and datasets are named by "
        f"their prefix; give '{prefix}'"
    )
    with pytest.raises(RootsError) as caught:
        IndexedWriter(f"{prefix}{ending}", 10)
    assert str(caught.value) == (
        f"--out='{prefix}{ending}': is a prefix, to which .bin, .idx and .json are added; "
        f"give '{prefix}'"
    )


def test_prefix_that_is_nearly_one(write_dataset, tmp_path):
    write_dataset(DOCUMENTS, name="corpus_text_document")
    write_dataset(DOCUMENTS, name="pairs.source")

    def told(prefix):
        with pytest.raises(RootsError) as caught:
            IndexedDataset(prefix)
        return str(caught.value)

    near = f"'{tmp_path}/corpus_text_document'"
    assert told(f"{tmp_path}/corpus") == (
        f"{tmp_path}/corpus.idx: no such file; give {near}, or run `roots preprocess`"
    )
    assert told(tmp_path) == (
        f"{tmp_path}: is a folder, and a dataset is named by the prefix of its files; "
        f"give {near} or '{tmp_path}/pairs.source'"
    )
    assert told(f"{tmp_path}/pairs") == (
        f"{tmp_path}/pairs: is a dataset of pairs, with two sides; set data.objective=pairs to "
        f"train on pairs, or give the prefix of one side, '{tmp_path}/pairs.source'"
    )
    assert told(f"{tmp_path}/corpus_text_document.source") == (
        f"{tmp_path}/corpus_text_document.source: there are no pairs there, but a dataset of "
        f"texts, {near}; run `roots preprocess --pairs`"
    )


def test_second_writer_is_refused(tmp_path):
    with IndexedWriter(tmp_path / "data", 10) as writer:
        writer.add(np.array([1, 2]))
        with pytest.raises(RootsError) as caught:
            IndexedWriter(tmp_path / "data", 10)
        assert str(caught.value).startswith(
            f"--out='{tmp_path}/data': in use by pid {os.getpid()} on host "
        )
        writer.finish("test", 0)
    assert IndexedDataset(tmp_path / "data").num_tokens == 2
    assert sorted(os.listdir(tmp_path)) == ["data.bin", "data.idx", "data.json"]


def overwrite(path: Path, offset: int, content: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:offset] + content + old[offset + len(content) :])


def test_text_file_in_place_of_a_prefix_is_told(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words\n")
    with pytest.raises(RootsError) as caught:
        IndexedDataset(text)
    assert caught.value.lines == (
        f"{text}: is a file and no dataset of tokens, which a prefix names; "
        f"run `roots preprocess --tokenizer DIR --out PREFIX {text}` and give PREFIX",
    )
